"""Stages of preferences over several processes: what one process computes, and the same again after resuming."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmtune import DpoArguments, KtoArguments, RmArguments, dpo, kto, rm

from ..launched import RUN, launch, records

pytestmark = pytest.mark.slow

has_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: pip install 'llmtune[deepspeed]'"
)
STAGES: dict[str, tuple[Any, Any]] = {"dpo": (dpo, DpoArguments), "kto": (kto, KtoArguments), "rm": (rm, RmArguments)}
DATA = {"dpo": "tiny-pairs#21", "kto": "tiny-labels#21", "rm": "tiny-pairs#21"}
SHORT = {"num_train_epochs": 1, "max_steps": 5, "eval_steps": 3, "save_steps": 3, "val_dataset_sample": 7}
STRATEGIES = {
    "ddp": {},
    "fsdp": {"fsdp": True},
    "zero2": {"deepspeed_config_path": "zero2"},
    "zero3": {"deepspeed_config_path": "zero3"},
}
CASES = [
    *((stage, "ddp") for stage in STAGES),
    *((stage, "fsdp") for stage in STAGES),
    *(pytest.param(stage, "zero2", marks=has_deepspeed) for stage in ("dpo", "rm")),
    pytest.param("dpo", "zero3", marks=has_deepspeed),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def run(stage: str) -> Path:
        if stage not in made:
            function, arguments = STAGES[stage]
            settings = RUN | SHORT | {"dataset": [DATA[stage]], "gradient_accumulation_steps": 4}
            made[stage] = function(
                arguments(**settings, output_dir=str(tmp_path_factory.mktemp(stage)), report_to=["none"])
            ).output_dir
        return made[stage]

    return run


@pytest.mark.parametrize(("stage", "strategy"), CASES)
def test_as_one_process_and_resumed(stage, strategy, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path / "cache"))
    settings = SHORT | {"dataset": DATA[stage], "nproc": 2, "gradient_accumulation_steps": 2, "report_to": "none"}
    run = launch(tmp_path / "runs", stage, **settings, **STRATEGIES[strategy])
    expected = alone(stage)
    for name in ("loss", "eval_loss", "eval_rewards/margins"):
        ours, theirs = records(run, name), records(expected, name)
        assert ours.keys() == theirs.keys()
        assert ours == pytest.approx(theirs, rel=2e-5, abs=2e-5), name
    before = records(run)
    shutil.rmtree(run / "checkpoint-5")
    shutil.rmtree(tmp_path / "cache")
    launch(tmp_path / "runs", stage, **settings, **STRATEGIES[strategy], resume_from_checkpoint="last")
    assert records(run) == before
