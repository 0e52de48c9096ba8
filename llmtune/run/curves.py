"""Plots of a run's curves, from its logging.jsonl."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from llmtune.errors import OutputError
from llmtune.run.plot import Line, Sheet
from llmtune.utils.files import read_records

RAW_COLOUR = "#FFE2D9"
SMOOTH_COLOUR = "#FF7043"
SMOOTHING = 0.9
SMOOTHED = ("loss",)
SKIPPED = ("epoch", "global_step", "total_flos", "num_input_tokens_seen", "useful_tokens", "time")
SKIPPED_PARTS = ("runtime", "_per_second")

FORMER_NAMES = {"learned_share": "trainable_share"}
"""Scalars that runs before version 0.5 logged under another name."""

Curve = dict[int, float]
"""Value of a scalar per optimizer step, ordered by step."""


def draw_curves(log_file: Path, folder: Path) -> list[Path]:
    """Plot one PNG per scalar of a log.

    Args:
        log_file: One JSON record per line, with `global_step` and scalars.
        folder: Created if missing; plots of an earlier call are replaced.

    Returns:
        The plots: `train_<scalar>.png`, and `eval_<scalar>.png` for evaluations.

    Raises:
        OutputError: The log cannot be read or a plot cannot be written.
    """
    try:
        curves = read_scalars(log_file)
        folder.mkdir(parents=True, exist_ok=True)
        sheet = Sheet()
        return [sheet.draw(name, _lines(name, curve), _file(folder, name)) for name, curve in curves.items()]
    except OSError as err:
        raise OutputError(f"The curves of {log_file} cannot be drawn into {folder}: {err.strerror or err}.") from err


def read_scalars(log_file: Path) -> dict[str, Curve]:
    """Return the scalars of a log by name. If a step was logged twice, as after resuming, the later value counts."""
    curves: dict[str, Curve] = {}
    for record in read_records(log_file):
        step = record.get("global_step")
        if not isinstance(step, int):
            continue
        for name, value in record.items():
            if _is_drawn(name) and _is_number(value):
                curves.setdefault(FORMER_NAMES.get(name, name), {})[step] = value
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}


def smooth(values: Sequence[float], weight: float = SMOOTHING) -> list[float]:
    """Exponential moving average, corrected for its start at 0."""
    found: list[float] = []
    average = 0.0
    for count, value in enumerate(values, start=1):
        average = weight * average + (1 - weight) * value
        found.append(average / (1 - weight**count))
    return found


def _is_drawn(name: str) -> bool:
    # transformers' closing record (train_loss, train_runtime, ...) sums up the run and is not a curve.
    is_summary = name.startswith("train_")
    return name not in SKIPPED and not is_summary and not any(part in name for part in SKIPPED_PARTS)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _lines(name: str, curve: Curve) -> list[Line]:
    points: list[tuple[float, float]] = [(step, value) for step, value in curve.items()]
    if name not in SMOOTHED or len(points) == 1:
        return [(points, SMOOTH_COLOUR)]
    smoothed = zip(curve, smooth(list(curve.values())), strict=True)
    return [(points, RAW_COLOUR), (list(smoothed), SMOOTH_COLOUR)]


def _file(folder: Path, name: str) -> Path:
    prefix = "" if name.startswith("eval_") else "train_"
    return folder / f"{prefix}{name.replace('/', '_')}.png"
