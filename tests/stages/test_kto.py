"""Whole runs of kto: where they begin, how their KL is measured, what they learn, and how they go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtune import KtoArguments, kto
from llmtune.errors import UsageError

RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-labels#24"], "val_dataset_sample": 8, "batch_size": 2,
    "gradient_accumulation_steps": 2, "max_steps": 6, "logging_steps": 1, "eval_steps": 3, "save_steps": 3,
    "learning_rate": 4e-3, "save_total_limit": -1, "only_save_model": False, "report_to": ["none"],
}  # fmt: skip


def run(folder: Path, **options: Any) -> Any:
    return kto(KtoArguments(**(RUN | {"output_dir": str(folder)} | options)))


def records(folder: Path, name: str = "loss") -> dict[int, float]:
    lines = map(json.loads, (folder / "logging.jsonl").read_text().splitlines())
    return {line["global_step"]: line[name] for line in lines if name in line}


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("lora"))


@pytest.mark.medium
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.5),
        ({"loss": ["apo_zero_unpaired"]}, 0.5),
        ({"packing": True, "max_length": 64}, 0.5),
        ({"share_prompt": "false"}, 0.5),
        ({"desirable_weight": 3.0, "undesirable_weight": 3.0}, 1.5),
        ({"sft_type": "full"}, 0.5),
        ({"dataset": ["tiny-pairs#24"]}, 0.5),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_the_first_loss_is_that_of_a_model_that_is_its_own_reference(options, expected, tmp_path):
    made = run(tmp_path, max_steps=1, eval_strategy="no", **options)
    assert records(made.output_dir)[1] == pytest.approx(expected, abs=1e-6)
    assert records(made.output_dir, "kl")[1] == pytest.approx(0, abs=1e-5)


@pytest.fixture(scope="module")
def agreeable(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Good responses that fit any prompt: their probability rises under all, so that the KL is above 0."""
    file = tmp_path_factory.mktemp("rows") / "agreeable.jsonl"
    texts = ("Yes, gladly.", "Of course, right away!", "With pleasure, my friend: here it is.")
    rows = [
        {"prompt": f"Please do number {number}.", "completion": texts[number % 3], "label": number % 5 != 0}
        for number in range(32)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


@pytest.mark.medium
def test_a_step_is_the_same_however_it_is_cut(agreeable, tmp_path):
    """The KL is that of the whole step, too: measured per micro-batch, it would differ."""
    more = {"dataset": [agreeable], "dataset_test_ratio": 0.25, "learning_rate": 1e-2}
    lora = run(tmp_path / "whole", **more)
    assert max(records(lora.output_dir, "kl").values()) > 1e-3, "else there is nothing to see"
    for number, options in enumerate(
        (
            {"batch_size": 1, "gradient_accumulation_steps": 4},
            {"batch_size": 4, "gradient_accumulation_steps": 1, "eval_batch_size": 3},
            {"share_prompt": "false", "padding_free": True},
        )
    ):
        other = run(tmp_path / str(number), **more, **options)
        for name in ("loss", "kl", "eval_loss", "eval_kl", "eval_rewards/margins"):
            ours, theirs = records(lora.output_dir, name), records(other.output_dir, name)
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5), (options, name)


@pytest.mark.medium
@pytest.mark.parametrize("options", [{}, {"streaming": True}, {"packing": True, "max_length": 64}], ids=str)
def test_a_resumed_run_equals_the_whole_one(options, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", **options)
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path / "empty"))
    before = records(whole.output_dir)
    kto(KtoArguments(resume_from_checkpoint=str(whole.output_dir / "checkpoint-3")))
    assert records(whole.output_dir) == before


@pytest.mark.medium
def test_good_responses_gain_and_bad_ones_lose(tmp_path):
    made = run(
        tmp_path, dataset=["tiny-labels"], max_steps=40, eval_steps=40, batch_size=8, gradient_accumulation_steps=1,
        learning_rate=2e-3, val_dataset_sample=40,
    )  # fmt: skip
    assert made.metrics["eval_rewards/chosen"] > 0 > made.metrics["eval_rewards/rejected"]
    assert made.metrics["eval_rewards/margins"] == pytest.approx(
        made.metrics["eval_rewards/chosen"] - made.metrics["eval_rewards/rejected"], rel=1e-6
    )
    assert made.metrics["eval_loss"] < 0.4


def test_a_loss_over_pairs_is_refused():
    with pytest.raises(UsageError, match="--loss sigmoid is over pairs: choose from kto, apo_zero_unpaired"):
        KtoArguments(**(RUN | {"loss": ["sigmoid"]}))
