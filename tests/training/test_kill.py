"""A run that is killed at any moment, without a word, goes on as if it had not been."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from llmtune.arguments.stage import SftArguments
from llmtune.checkpoint import last_checkpoint
from llmtune.stages.sft import sft

from .. import prepared
from ..launched import words

STEPS, SAVE_EVERY = 30, 4
SETTINGS = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-qa"], "max_steps": STEPS, "save_steps": SAVE_EVERY, "batch_size": 2,
    "gradient_accumulation_steps": 2, "logging_steps": 1, "eval_strategy": "no", "lora_dropout_p": 0.1,
    "learning_rate": 1e-3,
}  # fmt: skip


def losses(run: Path) -> dict[int, float]:
    """Step -> loss; of a step that was computed twice, the later one."""
    records = map(json.loads, (run / "logging.jsonl").read_text().splitlines())
    return {record["global_step"]: record["loss"] for record in records if "loss" in record}


PACKED = {"packing": True, "max_length": 96}
WAYS: dict[str, dict[str, Any]] = {
    "rows": {},
    "packs": PACKED,
    "streamed packs": PACKED | {"streaming": True, "num_train_epochs": 1},
    "all weights in bf16": {"sft_type": "full", "dtype": "bf16", "only_save_model": False, "group_by_length": True},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Callable[[str], dict[int, float]]:
    @cache
    def run(way: str) -> dict[int, float]:
        folder = tmp_path_factory.mktemp("undisturbed")
        return losses(sft(SftArguments(**(SETTINGS | WAYS[way]), output_dir=str(folder))).output_dir)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("way", "seed"), [("rows", 0), ("rows", 1), *((way, 2) for way in WAYS)])
def test_a_killed_run_resumes_to_the_same_losses(tmp_path, undisturbed, way, seed):
    settings = SETTINGS | WAYS[way]
    draw = random.Random(seed)
    after, pause = draw.randint(SAVE_EVERY, STEPS - 3), draw.random() * 0.3
    flags = words(settings | {"output_dir": str(tmp_path)})
    process = prepared.start(*prepared.LLMTUNE, "sft", *flags, folder=tmp_path)
    process.wait_for(f"step {after}/")
    time.sleep(pause)  # anywhere: in a step, or while a checkpoint is written
    process.kill()
    (run,) = (tmp_path / "llmtune-tiny").iterdir()
    assert last_checkpoint(run) is not None
    (run / ".saving-half").mkdir()
    expected = undisturbed(way)
    result = sft(SftArguments(**settings, output_dir=str(tmp_path), resume_from_checkpoint="last"))
    assert result.output_dir == run
    assert losses(run) == expected
    assert not list(run.glob(".saving-*"))
