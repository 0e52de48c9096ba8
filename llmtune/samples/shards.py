"""Encode rows into files of the token cache, shard by shard, by all processes that need them.

Each process takes a shard that nobody has, of this job or another one, on this machine or another that sees the cache,
encodes it and publishes it; at the end all have all of them. So rows are encoded once, however many ask for them, and a
job that was killed leaves its finished shards to the next.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.errors import LlmtuneError
from llmtune.utils.locks import try_lock
from llmtune.utils.logging import get_logger
from llmtune.utils.processes import can_fork, end_with_parent
from llmtune.utils.progress import progress_bar

SHARD_ROWS = 500_000
"""Rows per shard, 0.5 to 1 GB of tokens: a killed job loses at most one per process."""
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Shard:
    """Rows [start, stop) of a dataset, and the file of their tokens."""

    file: Path
    start: int
    stop: int


def shards_of(file: Path, num_rows: int) -> list[Shard]:
    """Return the shards of a dataset: `file` itself, or numbered files in a folder of its name.

    Args:
        file: With the hash of its content as its name.
    """
    if num_rows <= SHARD_ROWS:
        return [Shard(file, 0, num_rows)]
    starts = range(0, num_rows, SHARD_ROWS)
    return [
        Shard(file.with_suffix("") / f"{number:05}{file.suffix}", start, min(start + SHARD_ROWS, num_rows))
        for number, start in enumerate(starts)
    ]


Make = Callable[[Shard], None]
"""Encodes a shard and publishes its file."""
IsMade = Callable[[Shard], bool]
"""Whether the file of a shard is there and whole."""


def make_shards(shards: Sequence[Shard], make: Make, is_made: IsMade, *, processes: int, name: str) -> None:
    """Make the shards that are missing, with whoever makes them too; returns once all are there.

    Args:
        processes: That work on this machine.
        name: The use of the rows, for the progress bar.

    Raises:
        LlmtuneError: One of the processes failed.
    """
    missing = [shard for shard in shards if not is_made(shard)]
    if not missing:
        return
    helpers = _helpers(missing, make, is_made, min(processes, len(missing)) - 1)
    total = sum(shard.stop - shard.start for shard in missing)
    try:
        with progress_bar(total=total, desc=f"Encoding {name} shards", unit="row", quiet=len(shards) == 1) as bar:
            _work(missing, make, is_made, bar.update)
        for helper in helpers:
            helper.join()
    finally:
        for helper in helpers:
            helper.terminate()
    if any(helper.exitcode for helper in helpers):
        raise LlmtuneError(f"A process that encoded {name} rows failed; its message is above.")


def _work(
    missing: Sequence[Shard], make: Make, is_made: IsMade, done: Callable[[int], Any] = lambda rows: None
) -> None:
    left = deque(missing)
    turned_away = 0
    while left:
        shard = left.popleft()
        with try_lock(lock_of(shard.file)) as held:
            if held and not is_made(shard):  # by now, another process may have
                make(shard)
        if held or is_made(shard):
            done(shard.stop - shard.start)
            turned_away = 0
            continue
        left.append(shard)
        turned_away += 1
        if turned_away >= len(left):  # others have them all
            time.sleep(POLL_SECONDS)


def lock_of(file: Path) -> Path:
    return file.with_suffix(".lock")


def _helpers(missing: Sequence[Shard], make: Make, is_made: IsMade, count: int) -> list[Any]:
    """Start more processes, which share the memory of what is loaded; none where a system cannot fork."""
    if count < 1:
        return []
    if not can_fork():
        get_logger().info("--dataset_num_proc needs Linux, and a process that may start others: one process encodes.")
        return []
    context = multiprocessing.get_context("fork")
    found = [context.Process(target=_help, args=(missing, make, is_made, place), daemon=True) for place in range(count)]
    for helper in found:
        helper.start()
    return found


def _help(missing: Sequence[Shard], make: Make, is_made: IsMade, place: int) -> None:
    end_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads of the Rust library do not outlive a fork
    first = (place + 1) * len(missing) // (place + 2)  # begin elsewhere than the others
    try:
        _work([*missing[first:], *missing[:first]], make, is_made)
    except LlmtuneError as err:
        sys.stderr.write(f"llmtune: {err}\n")
        sys.exit(err.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
