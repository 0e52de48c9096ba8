"""`--sweep FILE`: a queued run for each combination of the values that a file lists."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.arguments.elsewhere.files import load_config
from llmtune.arguments.fields import shown
from llmtune.arguments.parser import parse
from llmtune.arguments.stage import StageArguments
from llmtune.arguments.stages import stage_arguments
from llmtune.errors import UsageError
from llmtune.run.queue import Queue
from llmtune.run.record import typed_yaml

MOST = 1000
NAME_CHARACTERS = 60


@dataclass(kw_only=True)
class SweepArguments:
    """Sweep."""

    sweep: str | None = None
    """YAML file of flags with lists of values: one run for each combination is queued, and none is started here."""


def queue_sweep(stage: str, argv: Sequence[str], file: Path) -> int:
    """Queue the runs of a sweep, after all of them have been checked.

    Args:
        argv: The flags that all have, without --sweep.

    Raises:
        UsageError: The file lists no values, or a combination is refused.
    """
    runs = [(named, _arguments(stage, argv, named)) for named in combinations(load_config(file), str(file))]
    queue = Queue(Path.cwd())
    for named, args in runs:
        place = queue.add(stage, typed_yaml(args))
        sys.stdout.write(f"{place.name}  {'  '.join(f'{name}={value}' for name, value in named.items())}\n")
    sys.stdout.write(
        f"{len(runs)} runs are queued. llmtune runs work runs them here, one after another; llmtune board starts them "
        "as devices become free.\n"
    )
    return 0


def combinations(content: dict[str, Any], file: str) -> list[dict[str, str]]:
    """Return every combination of the values, the last flag changing fastest.

    Raises:
        UsageError: There are none, or too many.
    """
    values = {name.replace("-", "_"): value if isinstance(value, list) else [value] for name, value in content.items()}
    values = {name: found for name, found in values.items() if not name.startswith("_")}
    if (
        not values
        or not all(values.values())
        or any(isinstance(one, list | dict) for found in values.values() for one in found)
    ):
        raise UsageError(
            f"--sweep {file} must hold one flag per line with its values, as `learning_rate: [1e-4, 2e-4]`."
        )
    found = [dict(zip(values, map(shown, one), strict=True)) for one in itertools.product(*values.values())]
    if len(found) > MOST:
        raise UsageError(f"--sweep {file} has {len(found):,} combinations: give up to {MOST:,}.")
    return found


def _arguments(stage: str, argv: Sequence[str], named: dict[str, str]) -> StageArguments:
    words = [word for name, value in named.items() for word in (f"--{name}", value)]
    if not any(word.split("=")[0] == "--run_name" for word in argv):
        words += ["--run_name", _name(named)]
    try:
        return parse(stage_arguments(stage), [*argv, *words], command=stage)
    except UsageError as err:
        raise UsageError(f"With {' '.join(words)}: {err}") from err


def _name(named: dict[str, str]) -> str:
    """A name that tells the runs of a sweep apart."""
    text = "-".join(f"{name}-{value}" for name, value in named.items())
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:NAME_CHARACTERS]
