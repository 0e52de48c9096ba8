"""A run is resumed by the name of its checkpoint alone: each stage takes its own flags from there, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtune.arguments.stages import STAGES, stage_arguments
from llmtune.checkpoint import numbered_checkpoints
from llmtune.registry import resolve_reference

pytestmark = pytest.mark.medium
COMMON: dict[str, Any] = {
    "model_type": "llmtune-tiny", "batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 4, "save_steps": 2,
    "logging_steps": 1, "eval_strategy": "no", "learning_rate": 1e-3, "report_to": ["none"], "save_total_limit": -1,
}  # fmt: skip
ONLINE: dict[str, Any] = {"dataset": ["tiny-sums#16"], "max_new_tokens": 4}
OWN: dict[str, dict[str, Any]] = {
    "sft": {"dataset": ["tiny-qa#16"], "loss_on": "everything"},
    "pt": {"dataset": ["tiny-text#16"], "join_documents": True, "max_length": 64},
    "dpo": {"dataset": ["tiny-pairs#16"], "loss": ["simpo", "sft*0.3"], "gamma": 0.3},
    "rm": {"dataset": ["tiny-pairs#16"], "centring": 0.3},
    "kto": {"dataset": ["tiny-labels#16"], "loss": ["apo_zero_unpaired"], "undesirable_weight": 2.0},
    "grpo": ONLINE | {"num_generations": 2, "loss": ["dapo"], "temperature": 1.7},
    "ppo": ONLINE | {"num_iterations": 3, "epsilon": 0.01, "lam": 0.5, "adaptive_kl": False, "beta": 0.3},
}
"""Flags that change the losses of a stage."""


def losses(folder: Path) -> list[tuple[int, float, float]]:
    lines = map(json.loads, (folder / "logging.jsonl").read_text().splitlines())
    return [(line["global_step"], line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


@pytest.mark.parametrize("stage", STAGES)
def test_flags_of_the_stage_come_from_the_checkpoint(stage, tmp_path):
    run, arguments = resolve_reference(STAGES[stage].function, what=stage), stage_arguments(stage)
    own = dict(OWN[stage])
    if "max_new_tokens" in own:
        file = tmp_path / "mine.py"
        file.write_text("def size(completions, **kwargs):\n    return [len(text) / 10 for text in completions]\n")
        own["rewards"] = [f"{file}:size"]
    whole = run(arguments(**COMMON, **own, output_dir=str(tmp_path / "whole"))).output_dir
    expected = losses(whole)
    run(arguments(max_steps=4, report_to=["none"], resume_from_checkpoint=str(numbered_checkpoints(whole)[0])))
    assert losses(whole)[len(expected) :] == expected[2:]
