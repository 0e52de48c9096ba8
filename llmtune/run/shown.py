"""A run folder as a notebook shows it: metrics, checkpoints, curves, responses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtune.run.curves import read_scalars
from llmtune.run.status import SAMPLES_FILE
from llmtune.utils import html
from llmtune.utils.files import read_records

PAIRS = (("loss", "eval_loss"), ("reward", "eval_reward"), ("learning_rate",), ("grad_norm",))
"""Curves that are drawn together."""
SHOWN_SAMPLES = 4


def run_html(folder: Path, facts: Mapping[str, object], metrics: Mapping[str, Any]) -> str:
    """Return a run as HTML: facts and metrics, its curves, and the responses of its last evaluation."""
    numbers = {name: f"{value:.4g}" for name, value in metrics.items() if isinstance(value, int | float)}
    parts = [html.table({**facts, **numbers}), *_curves(folder), _samples(folder)]
    return f"<div>{''.join(parts)}</div>"


def _curves(folder: Path) -> list[str]:
    log_file = folder / "logging.jsonl"
    found = read_scalars(log_file) if log_file.is_file() else {}
    lines = {
        name: {step: value for step, value in line.items() if math.isfinite(value)} for name, line in found.items()
    }
    return [html.curves(names[0], {name: lines[name] for name in names if name in lines}) for names in PAIRS]


def _samples(folder: Path) -> str:
    file = folder / SAMPLES_FILE
    records = read_records(file) if file.is_file() else []
    if not records:
        return ""
    last = [one for one in records if one.get("step") == records[-1].get("step")][:SHOWN_SAMPLES]
    names = ("step", "prompt", "response", "reference")
    return html.grid(names, [[one.get(name, "") for name in names] for one in last])
