"""Rows that are read while they are trained on: the same samples, an order that can be taken up anywhere."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from llmtune import SftArguments, sft
from llmtune.data.streaming import RecordStream
from llmtune.errors import DataError, UsageError
from llmtune.models.loading import get_model_tokenizer
from llmtune.samples.streaming import StreamedSamples
from llmtune.templates.lookup import get_template
from llmtune.utils.files import cache_root

from ..launched import launch, records

ROWS = 50


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    draw = random.Random(0)
    folder = tmp_path_factory.mktemp("rows")
    made = []
    for name, rows in (("a", ROWS), ("b", 20)):
        file = folder / f"{name}.jsonl"
        texts = [
            {"query": f"{name}{number} {'word ' * draw.randint(0, 30)}", "response": f"answer {number}"}
            for number in range(rows)
        ]
        file.write_text("".join(json.dumps(text) + "\n" for text in texts))
        made.append(file)
    return made


@pytest.fixture(scope="module")
def template() -> Any:
    _, tokenizer = get_model_tokenizer("llmtune-tiny", load_model=False)
    return get_template("chatml", tokenizer, max_length=128)


def samples(files, template, capacity=None, rows=16) -> StreamedSamples:
    stream = RecordStream([str(file) for file in files])
    return StreamedSamples(stream, template, seed=1, capacity=capacity, rows=rows)


def ids(found) -> list[tuple[int, ...]]:
    return [tuple(sample["input_ids"].tolist()) for sample in found]


def test_sources_in_turn(files):
    names = [record["messages"][0]["content"].split()[0] for record in RecordStream([f"{files[0]}#3", str(files[1])])]
    assert names[:7] == ["a0", "b0", "a1", "b1", "a2", "b2", "b3"]
    assert len(names) == 23


def test_a_registered_function_with_a_name_filled_in():
    (record,) = islice(RecordStream(["self-intro"], model_name=["Tuny"], model_author=["me"]), 1)
    assert "{{" not in json.dumps(record)


def test_each_row_once_a_pass_and_in_another_order(files, template):
    found = ids(islice(samples(files, template), 140))
    expected = set(ids(sample for file in files for sample in islice(samples([file], template), 70)))
    assert set(found[:70]) == set(found[70:]) == expected
    assert found[:70] != found[70:]
    assert found == ids(islice(samples(files, template), 140))


@pytest.mark.parametrize("capacity", [None, 128])
def test_taken_up_anywhere(files, template, capacity):
    whole = ids(islice(samples(files, template, capacity), 90))
    for stop in (0, 1, 15, 16, 17, 70, 83):
        stream = samples(files, template, capacity)
        running = iter(stream)
        list(islice(running, stop + 3))  # the loader is ahead of the steps
        again = samples(files, template, capacity)
        again.go_on_from(json.loads(json.dumps(stream.place_after(stop))))
        assert ids(islice(again, 90 - stop)) == whole[stop:]
        assert again.place_after(stop) == stream.place_after(stop)


def test_packs_hold_whole_rows_that_do_not_see_each_other(files, template):
    packs = list(islice(samples(files, template, 128), 5))
    assert max(len(pack["input_ids"]) for pack in packs) <= 128
    assert sum((pack["position_ids"] == 0).sum() for pack in packs) > 5
    assert all((pack["labels"][pack["position_ids"] == 0] == -100).all() for pack in packs)


def test_a_pass_without_trainable_tokens_ends(files, template):
    short = get_template("chatml", template.tokenizer, max_length=4, truncation_strategy="delete")
    with pytest.raises(DataError, match="None of 70 rows has trainable tokens"):
        next(iter(samples(files, short)))


def test_its_length_has_to_be_said():
    with pytest.raises(UsageError, match="--max_steps"):
        SftArguments(model_type="llmtune-tiny", streaming=True)
    args = SftArguments(model_type="llmtune-tiny", streaming=True, max_steps=3, group_by_length=True)
    assert args.unused_flags() == ["--group_by_length"]


RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "streaming": True, "batch_size": 2, "gradient_accumulation_steps": 2, "save_steps": 4,
    "learning_rate": 1e-3, "logging_steps": 1, "eval_steps": 8, "lora_dropout_p": 0.1, "save_total_limit": -1,
}  # fmt: skip


@pytest.mark.medium
@pytest.mark.parametrize("packing", [False, True])
def test_a_run_and_its_resumption(tmp_path, files, packing):
    settings = RUN | {"dataset": [str(file) for file in files], "val_dataset": [str(files[1])], "packing": packing}
    settings |= {"max_length": 128, "output_dir": str(tmp_path)}
    whole = sft(SftArguments(**settings, max_steps=22))
    expected, epochs = records(whole.output_dir), records(whole.output_dir, "epoch")
    assert len(expected) == 22
    assert "eval_loss" in whole.metrics
    resumed = sft(SftArguments(**settings, max_steps=22, resume_from_checkpoint=str(whole.output_dir / "checkpoint-8")))
    assert records(resumed.output_dir) == expected
    assert records(resumed.output_dir, "epoch") == pytest.approx(epochs, abs=1e-4)
    lines = (resumed.output_dir / "logging.jsonl").read_text().splitlines()
    assert sum('"loss"' in line for line in lines) == 22 + 14


@pytest.mark.slow
def test_two_processes_read_the_same_stream(tmp_path, files):
    settings = RUN | {"dataset": [str(file) for file in files], "lora_dropout_p": 0.0, "max_steps": 20}
    settings |= {"eval_strategy": "no", "num_train_epochs": 1, "train_dataset_sample": 20000}
    alone = sft(SftArguments(**settings, output_dir=str(tmp_path / "one")))
    together = launch(tmp_path / "two", **settings | {"nproc": 2, "gradient_accumulation_steps": 1})
    assert records(together) == pytest.approx(records(alone.output_dir), rel=1e-5)
    assert (
        "Streaming: each of the 2 processes of a machine encodes 1/2 of the rows" in (together / "run.log").read_text()
    )
    assert list(cache_root().joinpath("streams").iterdir()) == []  # used, and tidied up
