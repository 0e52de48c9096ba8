"""Files of a run as pages show them: curves, responses, log, checkpoints. All may be broken, or growing."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.checkpoint import numbered_checkpoints, read_state, saved_settings, step_of
from llmtune.run.found import typed_values
from llmtune.run.status import LOG_FILE, SAMPLES_FILE
from llmtune.utils.files import read_records

MOST_POINTS = 1000
MOST_LOG_BYTES = 1 << 20
FIRST_CURVES = ("loss", "eval_loss", "reward", "eval_reward")
OTHER_CURVES = (
    *("learning_rate", "grad_norm", "useful_tokens_per_second", "peak_memory_gib", "eval_token_acc"),
    *("rewards/margins", "rewards/accuracies", "kl", "entropy", "completions/mean_length"),
)


@dataclass(frozen=True)
class Point:
    """One logged number. `tokens` and `seconds` are those of the whole run so far."""

    step: float
    tokens: float
    seconds: float
    value: float


def read_curves(run: Path) -> dict[str, list[Point]]:
    """Return the curves of a run by name. A step that was trained twice counts once, as trained last."""
    file = run / "logging.jsonl"
    records = read_records(file) if file.is_file() else []
    found: dict[str, dict[float, Point]] = {}
    tokens = before = seconds = 0.0
    former_tokens, former_time = 0.0, None
    for record in records:
        step = _number(record.get("global_step"))
        if step is None:
            continue
        here = _number(record.get("useful_tokens"))
        if here is not None:
            before += former_tokens if here < former_tokens else 0.0  # a resumed process counts anew
            former_tokens, tokens = here, before + here
        moment = _number(record.get("time"))
        if moment is not None:
            seconds += max(moment - former_time, 0.0) if former_time is not None else 0.0
            former_time = moment
        for name in (*FIRST_CURVES, *OTHER_CURVES):
            value = _number(record.get(name))
            if value is not None:
                points = found.setdefault(name, {})
                for later in [one for one in reversed(points) if one > step]:
                    del points[later]
                points[step] = Point(step, tokens, seconds, value)
    return {name: list(points.values()) for name, points in found.items()}


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e300 else None


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most so many points, the last one among them: of the whole run, never its end alone."""
    if len(points) <= most:
        return list(points)
    stride = -(-len(points) // most)
    kept = list(points[::stride])
    return kept if kept[-1] is points[-1] else [*kept, points[-1]]


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Return the exponential moving average, with its start corrected. `weight`: of the past, from 0 to below 1."""
    found, mean, share = [], 0.0, 0.0
    for value in values:
        mean = weight * mean + (1 - weight) * value
        share = weight * share + (1 - weight)
        found.append(mean / share)
    return found


@dataclass(frozen=True)
class Watched:
    """A prompt, its reference response, and the responses of evaluations by step."""

    prompt: str
    reference: str
    responses: dict[int, str]


def read_samples(run: Path) -> list[Watched]:
    """Return the watched prompts with their responses; of a step that was evaluated twice, the later ones."""
    file = run / SAMPLES_FILE
    found: dict[int, Watched] = {}
    for record in read_records(file) if file.is_file() else []:
        index, step = record.get("index"), record.get("step")
        if not isinstance(index, int) or not isinstance(step, int):
            continue
        one = found.setdefault(index, Watched(str(record.get("prompt", "")), str(record.get("reference", "")), {}))
        for later in [other for other in one.responses if other > step]:
            del one.responses[later]
        one.responses[step] = str(record.get("response", ""))
    return [found[index] for index in sorted(found)]


def read_log(run: Path, num_lines: int = 200, search: str = "") -> list[str]:
    """Return the last lines of the log, or of those with a text, whatever its case."""
    with contextlib.suppress(OSError), (run / LOG_FILE).open("rb") as file:
        file.seek(0, 2)
        file.seek(max(file.tell() - MOST_LOG_BYTES, 0))
        lines = file.read().decode("utf-8", "replace").splitlines()
        return [line for line in lines if search.lower() in line.lower()][-num_lines:]
    return []


def read_decisions(run: Path) -> list[str]:
    """Return the settings that were chosen automatically, with their reasons, as the log has them."""
    lines = read_log(run, 100_000)
    starts = [place for place, line in enumerate(lines) if line.strip() == "Chosen automatically:"]
    if not starts:
        return []
    found = []
    for line in lines[starts[-1] + 1 :]:
        if not line.startswith("  "):
            break
        found.append(line.strip())
    return found


def read_checkpoints(run: Path) -> list[tuple[Path, dict[str, float]]]:
    """Return the checkpoints, newest first, with the numbers of the evaluation at their step."""
    found = []
    for folder in reversed(numbered_checkpoints(run)):
        history = read_state(folder).get("log_history", [])
        scores: dict[str, float] = {}
        for record in history if isinstance(history, list) else []:
            if isinstance(record, dict) and record.get("step") == step_of(folder):
                scores |= {
                    name: value
                    for name, value in record.items()
                    if name.startswith("eval_")
                    and _number(value) is not None
                    and not name.endswith(("runtime", "second"))
                }
        found.append((folder, scores))
    return found


def settings_of(run: Path) -> dict[str, Any]:
    """Return the settings of a run: as resolved, else as typed."""
    saved = saved_settings(run)
    own = {name: value for name, value in saved.items() if not name.startswith("_")}
    return own or {name: value for name, value in typed_values(run).items() if not name.startswith("_")}


def differing_settings(runs: Sequence[Path]) -> dict[str, list[str]]:
    """Return the settings in which runs differ: name -> value of each run."""
    found = [settings_of(run) for run in runs]
    names = dict.fromkeys(name for one in found for name in one)
    rows = {name: [_shown(one.get(name)) for one in found] for name in names if name not in ("output_dir", "run_name")}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def _shown(value: Any) -> str:
    return "" if value in (None, []) else " ".join(map(str, value)) if isinstance(value, list) else str(value)
