"""`--sequence_parallel_size`: processes that share their batches compute what one process computes, and resume."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmtune import DpoArguments, PtArguments, SftArguments, dpo, pt, sft
from llmtune.models.tiny import tiny_folder

from ..launched import RUN, launch, records
from .test_processes import check_tokens, check_weights

pytestmark = pytest.mark.slow

has_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: pip install 'llmtune[deepspeed]'"
)
STAGES: dict[str, tuple[Any, Any]] = {"sft": (sft, SftArguments), "pt": (pt, PtArguments), "dpo": (dpo, DpoArguments)}
SHARED = {"nproc": 2, "sequence_parallel_size": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {},
    "packed": {"sft_type": "full", "packing": True, "max_length": 128, "batch_size": 1, "predict_with_generate": False},
    "pt": {"dataset": ["tiny-text#60"], "join_documents": True, "max_length": 64, "max_steps": 6, "eval_steps": 3},
    "streamed": {"streaming": True, "val_dataset": ["tiny-qa#9"], "max_steps": 6, "eval_steps": 3},
    "dpo": {"dataset": ["tiny-pairs#21"], "max_steps": 5, "eval_steps": 3, "save_steps": 3, "val_dataset_sample": 7},
}
CASES = [
    pytest.param("sft", {"fsdp": True, "gradient_checkpointing": "full"}, id="sft-fsdp"),
    pytest.param("sft", {"deepspeed_config_path": "zero3"}, id="sft-zero3", marks=has_deepspeed),
    pytest.param("packed", {}, id="packed-ddp"),
    pytest.param("pt", {}, id="pt-ddp"),
    pytest.param("streamed", {}, id="streamed-ddp"),
    pytest.param("dpo", {}, id="dpo-ddp"),
    pytest.param("dpo", {"fsdp": True}, id="dpo-fsdp"),
    pytest.param("dpo", {"reference": tiny_folder}, id="dpo-reference"),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same run in one process."""
    made: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in made:
            function, arguments = STAGES.get(kind, STAGES["sft"])
            settings = RUN | {"gradient_accumulation_steps": 4, "report_to": ["none"]} | SETTINGS[kind]
            made[kind] = function(arguments(**settings, output_dir=str(tmp_path_factory.mktemp(kind)))).output_dir
        return made[kind]

    return run


def check_losses(run: Path, expected: Path) -> None:
    for name in ("loss", "grad_norm", "eval_loss"):
        ours, theirs = records(run, name), records(expected, name)
        assert ours.keys() == theirs.keys()
        assert len(ours) > 1
        assert ours == pytest.approx(theirs, rel=2e-6, abs=1e-6), name


@pytest.mark.parametrize(("kind", "strategy"), CASES)
def test_as_one_process(kind, strategy, alone, tmp_path, monkeypatch):
    strategy = {name: str(value()) if callable(value) else value for name, value in strategy.items()}
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path / "cache"))  # else the reference of one process would be found
    stage = kind if kind in STAGES else "sft"
    settings = {"gradient_accumulation_steps": 4, "report_to": "none"} | SHARED | SETTINGS[kind] | strategy
    run = launch(tmp_path / "runs", stage, **settings)
    check_losses(run, alone(kind))
    report = (run / "report.md").read_text()
    assert "whole sequences" not in report, "as a --reference that cannot be shared computes"
    assert "Sequence parallelism: 2 processes share each batch" in report
    assert "x 4 accumulation x 1 group of 2 processes)" in report
    if stage != "dpo":
        check_tokens(run, alone(kind))


def test_two_groups_of_two_and_one_process_goes_on(tmp_path, alone):
    """With another number of processes, and none that share: the same samples in the same steps."""
    run = launch(tmp_path, nproc=4, sequence_parallel_size=2, gradient_accumulation_steps=2)
    check_losses(run, alone("sft"))
    check_weights(run, alone("sft"))
    before = records(run)
    shutil.rmtree(run / "checkpoint-12")
    settings = RUN | {"gradient_accumulation_steps": 4, "output_dir": str(tmp_path)}
    assert sft(SftArguments(**settings, resume_from_checkpoint=str(run))).output_dir == run
    lines = [json.loads(line) for line in (run / "logging.jsonl").read_text().splitlines()]
    assert [line["global_step"] for line in lines if "loss" in line] == [*range(1, 13), *range(9, 13)]
    assert records(run) == pytest.approx(before, rel=2e-6)
