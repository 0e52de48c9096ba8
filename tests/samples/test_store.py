"""Tokens on disk: right, found again under the same key and only there, and honest about what was left out."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

from llmtune.data.canonical import to_record
from llmtune.errors import DataError
from llmtune.samples import store as store_module
from llmtune.samples.encode_report import EncodeReport
from llmtune.samples.store import TokenStore, encode_dataset
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.encode import EncodedRow
from llmtune.templates.lookup import get_template
from llmtune.templates.tools import TOOL_FORMAT_MAPPING
from llmtune.types import Conversation, Encoded, Media, Message

from ..data.made import DAMAGED


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    from llmtune.models.tiny import tiny_folder

    return AutoTokenizer.from_pretrained(str(tiny_folder()))


def rows(count: int = 30, *, turns: int = 1, name: str = "q") -> datasets.Dataset:
    made = []
    for number in range(count):
        pairs = [(Message("user", f"{name}{number}"), Message("assistant", "a" * (number + 1), loss=True))] * turns
        made.append(to_record(Conversation(tuple(message for pair in pairs for message in pair))))
    return datasets.Dataset.from_list(made)


@pytest.mark.medium
def test_the_store_holds_what_the_template_makes(tokenizer):
    template = get_template("chatml", tokenizer)
    data = rows(2500)  # more than two batches
    store = encode_dataset(data, template)
    assert len(store) == 2500
    for index in (0, 999, 1000, 2499):
        expected = template.encode(data[index])
        assert store[index]["input_ids"].tolist() == expected["input_ids"]
        assert store[index]["labels"].tolist() == expected["labels"]
        assert store.row_of(index) == index
    assert store[0]["input_ids"].dtype == np.int32
    assert [len(sample["input_ids"]) for sample in store] == store.lengths.tolist()
    assert store.report.num_tokens == store.lengths.sum()
    with pytest.raises(IndexError):
        store[2500]


def test_found_again_only_where_nothing_changed(tokenizer, monkeypatch):
    data = rows(name="same")
    template = get_template("chatml", tokenizer)
    file = encode_dataset(data, template).file
    calls = []
    own = ChatTemplate.encode_rows
    monkeypatch.setattr(ChatTemplate, "encode_rows", lambda *a: (calls.append(1), own(*a))[1])
    assert encode_dataset(data, get_template("chatml", tokenizer)).file == file
    assert not calls
    other_tokenizer = copy.deepcopy(tokenizer)
    other_tokenizer.add_tokens(["<new>"])
    different = [
        get_template("chatml", tokenizer, max_length=20),
        get_template("chatml", tokenizer, system="x"),
        get_template("chatml", tokenizer, loss_on="last"),
        get_template("chatml", tokenizer, truncation_strategy="delete"),
        get_template("chatml", tokenizer, special_tokens_in_text="special"),
        get_template("qwen2.5", tokenizer),
        get_template("chatml", other_tokenizer),
    ]
    files = {encode_dataset(data, template).file for template in different} | {file}
    assert len(files) == len(different) + 1
    assert encode_dataset(rows(29, name="same"), template).file not in files
    calls.clear()
    encode_dataset(data, template, overwrite=True)
    assert calls


def test_skipped_samples_are_logged(tokenizer, capsys):
    data = datasets.concatenate_datasets([rows(20), rows(5, turns=2)])
    template = get_template("default-generation", tokenizer)
    store = encode_dataset(data, template)
    assert (store.report.num_problems, len(store)) == (5, 20)
    assert "5 of 25 training rows cannot be written with the template 'default-generation'; first: row 20" in (
        capsys.readouterr().err
    )
    encode_dataset(data, template)
    assert "5 of 25 training rows" in capsys.readouterr().err, "a second run says the same"
    with pytest.raises(DataError, match="row 20"):
        encode_dataset(data, template, strict=True)
    with pytest.raises(DataError, match="Fix them"):
        encode_dataset(rows(5, turns=2), template)


def test_every_count_of_a_row_reaches_the_report():
    encoded = Encoded([1, 2, 3], [-100, 2, 3])
    weighted = Encoded([1, 2], [-100, 2], weights=[1.0, 0.5])
    names = [field.name for field in dataclasses.fields(EncodedRow) if field.type == "int"]
    report = EncodeReport()
    for number in (1, 2):
        counts = {name: number * 10**place for place, name in enumerate(names)}
        report.count(EncodedRow([encoded, weighted][:number], **counts), "row")
    assert {name: getattr(report, name) for name in names} == {name: 3 * 10**place for place, name in enumerate(names)}
    assert (report.num_rows, report.num_samples, report.num_split_rows) == (2, 3, 0), "windows are no split"
    assert report.num_continued == 2
    report.count(EncodedRow([encoded, encoded]), "row")
    assert (report.num_rows, report.num_samples, report.num_split_rows) == (3, 5, 1)
    assert (report.num_tokens, report.num_trainable, report.num_weighted) == (14, 9, 1)
    for number in range(7):
        report.count(EncodedRow([encoded], problem=f"why {number}"), f"row {number}")
    assert (report.num_rows, report.num_samples, report.num_problems) == (10, 5, 7)
    assert report.problems == [f"row {number}: why {number}" for number in range(5)], "the first few"


@pytest.mark.parametrize(("num_long", "level"), [(1, "info"), (2, "warning")])
def test_cutting_is_warned_of_above_one_in_a_hundred(tokenizer, num_long, level, monkeypatch):
    """Questions lose their start, and nothing that was to be trained on."""
    texts = ["a long text of many words " * 50] * num_long + ["short"] * (100 - num_long)
    pairs = [(Message("user", text), Message("assistant", "yes", loss=True)) for text in texts]
    told = {"info": [], "warning": []}
    for name, lines in told.items():
        monkeypatch.setattr(store_module.get_logger(), name, lambda text, *args, lines=lines: lines.append(text % args))
    data = datasets.Dataset.from_list([to_record(Conversation(pair)) for pair in pairs])
    encode_dataset(data, get_template("chatml", tokenizer, max_length=40))
    (line,) = told[level]
    assert line.startswith(f"{num_long} of 100 training samples are longer than --max_length 40 and lost")
    assert ("--truncation_strategy delete" in line) == (level == "warning")


def test_a_template_is_known_by_all_that_writes(tokenizer):
    """Its fields, the source of its functions, the tokenizer's own template and what that is given."""

    chatml = get_template("chatml", tokenizer)
    files = [encode_dataset(rows(), chatml).file]
    key = chatml.info.tool_format
    assert key is not None
    changed_format = dataclasses.replace(TOOL_FORMAT_MAPPING[key], write_tools=lambda system, tools: "no tools")
    TOOL_FORMAT_MAPPING.register(key, changed_format, replace=True)
    changed = [chatml, get_template("chatml", tokenizer)]
    changed[1].info = dataclasses.replace(chatml.info, suffix=["<|im_end|>", "\n"])
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    own.chat_template += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    longer = copy.deepcopy(own)
    longer.chat_template += "{# a word #}"
    changed += [get_template("auto", own), get_template("auto", longer)]
    changed.append(get_template("auto", own, template_kwargs={"enable_thinking": False}))
    files += [encode_dataset(rows(), template).file for template in changed]
    assert len(set(files)) == len(changed) + 1


def test_split_rows_know_where_they_come_from(tokenizer):
    store = encode_dataset(rows(3, turns=2), get_template("default", tokenizer))
    assert [store.row_of(index) for index in range(len(store))] == [0, 0, 1, 1, 2, 2]
    assert store.report.num_split_rows == 3


def test_nothing_left(tokenizer, capsys):
    template = get_template("chatml", tokenizer, max_length=3, truncation_strategy="delete")
    with pytest.raises(DataError, match="No training sample is left of 30 rows"):
        encode_dataset(rows(), template)
    store = encode_dataset(rows(), template, name="validation", required=False)
    assert isinstance(store, TokenStore)
    assert len(store) == 0
    assert store.lengths.size == 0
    assert "No validation sample is left" in capsys.readouterr().err


def test_a_broken_write_leaves_nothing(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path))

    def broken(*_: Any) -> Any:
        raise RuntimeError("power cut")

    monkeypatch.setattr(ChatTemplate, "encode_rows", broken)
    with pytest.raises(RuntimeError):
        encode_dataset(rows(), get_template("chatml", tokenizer))
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


@pytest.mark.parametrize("strategy", ["left", "right"])
@pytest.mark.parametrize("text", [True, False])
def test_truncation_is_logged_in_tokens(tokenizer, capsys, strategy, text):
    """A long text loses tokens that were to be trained on; a long question none of them."""
    long = "a long text of many words " * 50
    answer = Message("assistant", long if text else "short", loss=True)
    row = Conversation((answer,) if text else (Message("user", long), answer))
    whole = get_template("chatml", tokenizer, max_length=None).encode(row)
    template = get_template("chatml", tokenizer, max_length=40, truncation_strategy=strategy)
    store = encode_dataset(datasets.Dataset.from_list([to_record(row)] * 3), template, required=False)
    cut = 3 * (len(whole["input_ids"]) - 40)
    trainable = 3 * sum(label != -100 for label in whole["labels"]) - store.report.num_trainable
    told = capsys.readouterr().err
    side = "start" if strategy == "left" else "end"
    expected = f"3 of 3 training samples are longer than --max_length 40 and lost {cut:,} tokens at their {side}"
    assert expected + (f", {trainable:,} of them trainable. " if trainable else ". ") in told
    assert (store.report.num_cut_tokens, store.report.num_cut_trainable) == (cut, trainable)
    assert (trainable > 0) == (text or strategy == "right")
    encode_dataset(datasets.Dataset.from_list([to_record(row)] * 3), template, required=False)
    assert capsys.readouterr().err == told


DAMAGE = DAMAGED | {
    "other_numbers": lambda raw: raw.replace(b'"num_rows": 30', b'"num_rows": 31'),
    "other_types": lambda raw: raw.replace(b'"num_rows": 30', b'"num_rows": {}'),
    "other_names": lambda raw: raw.replace(b'"num_rows"', b'"num_rosw"'),
}


@pytest.mark.parametrize("suffix", [".arrow", ".json"])
@pytest.mark.parametrize("damage", [*DAMAGE, "missing", "a folder"])
def test_a_damaged_store_is_encoded_again(tokenizer, monkeypatch, tmp_path, suffix, damage, capsys):
    if suffix == ".arrow" and damage.startswith("other"):
        return
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path))
    template = get_template("chatml", tokenizer)
    whole = encode_dataset(rows(), template)
    file = whole.file.with_suffix(suffix)
    raw = file.read_bytes()
    file.unlink()
    if damage in DAMAGE:
        file.write_bytes(DAMAGE[damage](raw))
        assert file.read_bytes() != raw
    elif damage == "a folder":
        file.mkdir()
    capsys.readouterr()
    again = encode_dataset(rows(), template)
    assert "The encoded training rows in the cache are damaged; encoding them again." in capsys.readouterr().err
    assert again.report == whole.report
    assert [sample["input_ids"].tolist() for sample in again] == [sample["input_ids"].tolist() for sample in whole]
    assert file.read_bytes() == raw
    encode_dataset(rows(), template)
    assert "are damaged" not in capsys.readouterr().err


def test_a_store_can_be_read_while_it_is_encoded_again(tokenizer, monkeypatch):
    template = get_template("chatml", tokenizer)
    file = encode_dataset(rows(), template).file
    before = file.stat().st_ino
    read = []

    def encode(*args, **kwargs):
        read.append(len(TokenStore(file)))
        write(*args, **kwargs)

    write = store_module._encode
    monkeypatch.setattr(store_module, "_encode", encode)
    again = encode_dataset(rows(), template, overwrite=True)
    assert read == [len(again)]
    assert file.stat().st_ino != before


RACE = """
import sys
import datasets
from transformers import AutoTokenizer
from llmtune.samples.store import encode_dataset
from llmtune.models.tiny import tiny_folder
from llmtune.templates.lookup import get_template
rows = datasets.Dataset.from_file(sys.argv[1])
rows._fingerprint = "race"
template = get_template("chatml", AutoTokenizer.from_pretrained(str(tiny_folder())))
for _ in range(5):
    store = encode_dataset(rows, template, overwrite=True)
print(len(store), int(store.lengths.sum()), store.file.name)
"""


@pytest.mark.slow
def test_processes_race_for_one_store(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path / "cache"))
    table = rows(200).data.table
    with pa.ipc.new_stream(tmp_path / "rows.arrow", table.schema) as sink:
        sink.write_table(table)
    command = [sys.executable, "-c", RACE, str(tmp_path / "rows.arrow")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0] * 4
    assert len(outputs) == 1
    assert outputs.pop().startswith("200 ")
    assert sorted(path.suffix for path in (tmp_path / "cache" / "tokens").iterdir()) == [".arrow", ".json"]


def test_images_are_not_passed_over_in_silence(tokenizer, capsys):
    row = to_record(
        Conversation((Message("user", "<image>?"), Message("assistant", "a", loss=True)), media=(Media("1.jpg"),))
    )
    store = encode_dataset(datasets.Dataset.from_list([row]), get_template("chatml", tokenizer))
    assert store.report.num_with_images == 1
    assert "1 training rows name images, but this model takes text only" in capsys.readouterr().err
