"""Continued pre-training in processes of its own: two compute what one computes, and a killed run resumes exactly."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from llmtune import PtArguments, pt
from llmtune.checkpoint import last_checkpoint

from .. import prepared
from ..launched import newest, records, words

pytestmark = pytest.mark.slow

RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-text#40"], "max_length": 128, "batch_size": 2, "max_steps": 12,
    "learning_rate": 1e-3, "logging_steps": 1, "eval_steps": 6, "save_steps": 4, "save_total_limit": -1,
    "val_dataset_sample": 5, "lora_dropout_p": 0.1,
}  # fmt: skip
WAYS: list[Any] = [
    pytest.param({}, id="packed"),
    pytest.param({"join_documents": True}, id="blocks"),
    pytest.param({"streaming": True, "val_dataset": ["tiny-text#5"]}, id="streamed"),
]


def start(folder: Path, **settings: Any) -> prepared.Started:
    flags = words(RUN | settings | {"output_dir": str(folder)})
    return prepared.start(*prepared.LLMTUNE, "pt", *flags, folder=folder, nproc=settings.get("nproc", 1))


@pytest.mark.parametrize("options", WAYS[:2])
def test_two_processes_compute_what_one_computes(tmp_path, options):
    options = options | {"lora_dropout_p": 0.0}
    one = pt(PtArguments(**(RUN | options), gradient_accumulation_steps=4, output_dir=str(tmp_path / "one"))).output_dir
    (tmp_path / "two").mkdir()
    start(tmp_path / "two", **options, nproc=2, gradient_accumulation_steps=2).check()
    two = newest(tmp_path / "two")
    for name in ("loss", "eval_loss", "eval_perplexity", "eval_bits_per_byte"):
        ours, theirs = records(two, name), records(one, name)
        assert ours.keys() == theirs.keys()
        assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-4), name


@pytest.mark.parametrize(
    "strategy", [{"fsdp": True}, {"deepspeed_config_path": "zero3"}], ids=lambda one: next(iter(one))
)
def test_new_tokens_of_sharded_weights_are_those_of_whole_ones(tmp_path, strategy):
    if "fsdp" not in strategy:
        pytest.importorskip("deepspeed", reason="pip install 'llmtune[deepspeed]'")
    (tmp_path / "terms.txt").write_text("Lesson 1\ncapital of\n首都是\n", encoding="utf-8")
    options = {"new_tokens_file": str(tmp_path / "terms.txt"), "sft_type": "full", "max_steps": 6}
    one = pt(PtArguments(**(RUN | options), gradient_accumulation_steps=4, output_dir=str(tmp_path / "one"))).output_dir
    (tmp_path / "two").mkdir()
    start(tmp_path / "two", **options, **strategy, nproc=2, gradient_accumulation_steps=2).check()
    ours, theirs = (list(records(run).values()) for run in (newest(tmp_path / "two"), one))
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("options", WAYS)
def test_a_killed_run_resumes_to_the_same_losses(tmp_path, options):
    options = options | {"gradient_accumulation_steps": 2}
    expected = records(pt(PtArguments(**(RUN | options), output_dir=str(tmp_path / "whole"))).output_dir)
    folder = tmp_path / "killed"
    folder.mkdir()
    process = start(folder, **options)
    process.wait_for("step 6/")
    time.sleep(0.1)
    process.kill()
    run = newest(folder)
    assert last_checkpoint(run) is not None
    resumed = pt(PtArguments(**(RUN | options), output_dir=str(folder), resume_from_checkpoint="last"))
    assert resumed.output_dir == run
    assert records(run) == expected
