"""Runs in processes of their own, as a user starts them, and what they left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import prepared

# A step is 8 samples: 43 do not fill the last one, nor divide by two; two passes, so that the second has an order too.
RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-qa#43"], "train_dataset_sample": -1, "batch_size": 2,
    "learning_rate": 1e-3, "num_train_epochs": 2, "logging_steps": 1, "eval_steps": 6, "save_steps": 4,
    "save_total_limit": -1, "only_save_model": False,
}  # fmt: skip


def words(settings: dict[str, Any]) -> list[str]:
    return [
        word
        for name, value in settings.items()
        for word in (f"--{name}", *map(str, value if isinstance(value, list) else [value]))
    ]


def start(folder: Path, **settings: Any) -> subprocess.Popen[str]:
    """As a user does: `--nproc` hands over to torchrun."""
    return subprocess.Popen(
        [sys.executable, "-m", "llmtune", "sft", *flags(folder, settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def flags(folder: Path, settings: dict[str, Any]) -> list[str]:
    return words(RUN | settings | {"output_dir": str(folder)})


def launch(folder: Path, stage: str = "sft", **settings: Any) -> Path:
    """Run to the end, in prepared processes; the run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    nproc = settings.get("nproc", 1)
    prepared.start(*prepared.LLMTUNE, stage, *flags(folder, settings), folder=folder, nproc=nproc).check()
    return newest(folder)


def newest(folder: Path) -> Path:
    return max((folder / "llmtune-tiny").glob("v*-*"), key=lambda path: int(path.name[1:].split("-")[0]))


def records(run: Path, name: str = "loss") -> dict[int, float]:
    """Step -> value; of a step that was computed twice, the later one."""
    lines = map(json.loads, (run / "logging.jsonl").read_text().splitlines())
    return {line["global_step"]: line[name] for line in lines if name in line}
