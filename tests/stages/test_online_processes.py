"""Online stages over several processes, and killed: the responses, rewards and losses of one undisturbed process."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from llmtune import GrpoArguments, PpoArguments, grpo, ppo
from llmtune.checkpoint import numbered_checkpoints

from .. import prepared
from ..launched import flags, launch, newest
from .test_grpo import answers, close, records

pytestmark = pytest.mark.slow

REWARDS = """
import os, time
def letter(completions, **kwargs):
    if "SLOW" in os.environ:
        time.sleep(0.4)
    return [text.count("e") / max(len(text), 1) for text in completions]
"""
STAGES: dict[str, tuple[Any, Any]] = {"grpo": (grpo, GrpoArguments), "ppo": (ppo, PpoArguments)}
OPTIONS: dict[str, dict[str, Any]] = {
    "grpo": {"num_generations": 4, "num_iterations": 2, "beta": 0.1},
    "rloo": {"num_generations": 4, "loss": "rloo"},
    "ppo": {"num_iterations": 2},
}
CASES = [
    ("grpo", {}),
    ("rloo", {}),
    ("ppo", {}),
    pytest.param(
        "grpo",
        {"deepspeed_config_path": "zero2"},
        marks=pytest.mark.skipif(
            importlib.util.find_spec("deepspeed") is None,
            reason="deepspeed is not installed: pip install 'llmtune[deepspeed]'",
        ),
    ),
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("online")
    rows = [{"question": f"{a} + {b} = ?", "answer": str(a + b)} for a in range(10) for b in range(2)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "mine.py").write_text(REWARDS)
    return {
        "dataset": [str(folder / "sums.jsonl")], "val_dataset_sample": 3, "rewards": [f"{folder / 'mine.py'}:letter"],
        "max_new_tokens": 5, "batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 5, "num_train_epochs": 1,
        "eval_steps": 3, "save_steps": 1, "warmup_ratio": 0.0, "report_to": "none",
    }  # fmt: skip


@pytest.fixture(scope="module")
def alone(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in made:
            stage = "ppo" if name == "ppo" else "grpo"
            made[name] = launch(tmp_path_factory.mktemp(name), stage, **settings, **OPTIONS[name])
        return made[name]

    return run


@pytest.mark.parametrize(("name", "strategy"), CASES)
def test_two_processes_equal_one_and_resume(name, strategy, alone, settings, tmp_path):
    stage = "ppo" if name == "ppo" else "grpo"
    options = settings | OPTIONS[name] | strategy | {"nproc": 2, "gradient_accumulation_steps": 1}
    run = launch(tmp_path, stage, **options)
    close(run, alone(name), 5e-5)
    before = records(run)
    for checkpoint in numbered_checkpoints(run)[3:]:
        shutil.rmtree(checkpoint)
    launch(tmp_path, stage, **options, resume_from_checkpoint="last")
    assert records(run)[len(before) :] == [one for one in before if one["global_step"] > 3]


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_killed_at_any_moment_and_resumed_equals_undisturbed(name, alone, settings, tmp_path, monkeypatch):
    """Killed again and again, each time later, with rewards that take their time; until it ends."""
    monkeypatch.setenv("SLOW", "1")
    stage = "ppo" if name == "ppo" else "grpo"
    options = settings | OPTIONS[name] | {"resume_from_checkpoint": "last"}
    for number in range(20):
        started = prepared.start(*prepared.LLMTUNE, stage, *flags(tmp_path, options), folder=tmp_path, nproc=1)
        deadline = time.monotonic() + 1.5 + 0.35 * number
        while time.monotonic() < deadline and started.processes[0].is_alive():
            time.sleep(0.02)
        if not started.processes[0].is_alive():
            break
        os.kill(started.processes[0].pid, signal.SIGKILL)
        started.processes[0].join()
    launch(tmp_path, stage, **options) if started.processes[0].exitcode != 0 else None
    run = newest(tmp_path)
    by_step = {(one["global_step"], "eval_reward" in one): one for one in records(run)}
    expected = {(one["global_step"], "eval_reward" in one): one for one in records(alone(name))}
    assert by_step == expected
    assert answers(run) == answers(alone(name))
    assert number > 1, "it was never killed"
