"""Parts of streamed windows, encoded once per machine: each process encodes one, and gets the others' through files.

Each process writes its parts into a folder of its own in llmtune's cache, whose name says which process made it. None
of it decides what is trained on: a part that does not come (its process was killed, has ended, or cannot write) is
encoded by whoever misses it. Machines do not wait for each other: files appear late on shared file systems.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from llmtune.distributed.ranks import local_rank, local_world_size, run_key
from llmtune.utils.files import TEMPORARY, cache_root, machine_id, temporary_folder
from llmtune.utils.logging import get_logger
from llmtune.utils.processes import is_alive

PATIENCE_SECONDS = 30.0
"""For which a process waits for parts of a window, of processes that live. Also a limit to how long the thread that
waits can hold up the end of a process that failed."""
POLL_SECONDS = 0.02
KEPT = 3
"""Newest parts that a process keeps. It begins a window once it has all parts of the one before: every other process
has then begun that one, and has those before it; at the end of a pass, where rows may be too few for a part of each,
it may be one behind."""

Rows: TypeAlias = "Sequence[dict[str, Any]]"
Encode: TypeAlias = "Callable[[int, Rows], pa.RecordBatch]"
"""From the place of the first of some rows in their window, and the rows."""

_numbers = itertools.count()


class PartExchange:
    """The exchange of parts between the processes of a machine.

    Args:
        place: Of this process among them.
        count: Number of them.
        name: Of the exchange, the same in all of them and in no other exchange.
        patience_s: Seconds to wait for the parts of a window.
    """

    def __init__(self, place: int = 0, count: int = 1, name: str = "", *, patience_s: float = PATIENCE_SECONDS) -> None:
        self.place, self.count = place, count
        self._root = cache_root() / "streams"
        self._name = name
        self._patience_s = patience_s
        self._openings = 0
        self._folder: Path | None = None
        self._others: dict[int, Path] = {}
        self._absent: set[int] = set()
        self._closed = threading.Event()

    @contextlib.contextmanager
    def open(self) -> Iterator[PartExchange]:
        """Exchange the parts of a pass over the windows within the block; all processes open as often."""
        self._openings += 1
        self._folder, self._others, self._absent = None, {}, set()
        self._closed.clear()
        with contextlib.ExitStack() as stack:
            if self.count > 1:
                try:
                    self._root.mkdir(parents=True, exist_ok=True)
                    self._folder = stack.enter_context(temporary_folder(self._target(self.place)))
                except OSError as err:
                    self._write_no_more(err)
            yield self

    def close(self) -> None:
        """Let no thread wait for parts any more."""
        self._closed.set()

    def parts(self, number: int, rows: Rows, encode: Encode) -> list[pa.RecordBatch]:
        """Return the parts of window `number` in order, of which this process encodes one and those that do not come.

        Raises:
            CancelledError: The exchange was closed meanwhile.
        """
        bounds = itertools.pairwise(len(rows) * place // self.count for place in range(self.count + 1))
        spans = {place: slice(*span) for place, span in enumerate(bounds) if span[0] < span[1]}
        made: dict[int, pa.RecordBatch] = {}
        if own := spans.get(self.place):
            made[self.place] = encode(own.start, rows[own])
            self._give(number, rows[own], made[self.place])
        until = time.monotonic() + self._patience_s
        for place, span in spans.items():
            if place != self.place:
                part = self._take(number, rows[span], place, until)
                made[place] = encode(span.start, rows[span]) if part is None else part
        return [made[place] for place in spans]

    def _give(self, number: int, rows: Rows, part: pa.RecordBatch) -> None:
        if self._folder is None:
            return
        made = self._folder / "made"
        try:
            with pa.OSFile(str(made), "wb") as sink, pa.ipc.new_file(sink, part.schema) as writer:
                writer.write_batch(part)
            for file in _files(self._folder):
                if _number_of(file) <= number - KEPT:
                    with contextlib.suppress(PermissionError):  # on Windows, while another process reads it
                        file.unlink()
            made.replace(self._folder / _name(number, rows))
        except OSError as err:
            self._write_no_more(err)

    def _take(self, number: int, rows: Rows, place: int, until: float) -> pa.RecordBatch | None:
        """Wait for the part that another process makes of these rows; None if it does not come.

        Who has had no folder until then is not waited for again.
        """
        while not self._closed.is_set():
            folder = self._folder_of(place)
            if folder is not None:
                is_past = any(_number_of(file) >= number for file in _files(folder))
                with contextlib.suppress(OSError, pa.ArrowInvalid):
                    return _read(folder / _name(number, rows))
                if is_past:  # it made a part of other rows, or removed this one
                    return None
            if place in self._absent or time.monotonic() > until:
                self._absent |= {place} if folder is None else set()
                return None
            self._closed.wait(POLL_SECONDS)
        raise CancelledError

    def _folder_of(self, place: int) -> Path | None:
        """Return the folder of a process that is alive and writes parts."""
        if place not in self._others:
            found = list(self._root.glob(f".{self._target(place).name}.{machine_id()}-*.tmp"))
            if not found:
                return None
            self._others[place] = found[0]
            self._absent.discard(place)
        folder = self._others[place]
        if folder.is_dir() and _is_of_living(folder):
            return folder
        self._absent.add(place)
        return None

    def _target(self, place: int) -> Path:
        return self._root / f"{self._name}-{self._openings}-{place}"

    def _write_no_more(self, err: OSError) -> None:
        get_logger().warning(
            f"Encoded rows cannot be written to {self._root} ({err.strerror or err}): each process encodes all rows. "
            "Free some space, or set LLMTUNE_CACHE to another folder."
        )
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)  # so that nobody waits for this process
        self._folder = None
        self._patience_s = 0.0  # the others probably fail as well


def exchange_on_this_machine() -> PartExchange:
    """Return the exchange of the processes of this run on this machine; all of them ask for it equally often."""
    if local_world_size() == 1:
        return PartExchange()
    return PartExchange(local_rank(), local_world_size(), f"{run_key()}-{next(_numbers)}")


def _name(number: int, rows: Rows) -> str:
    """Return the file name of the part of window `number` that is made of these rows."""
    digest = hashlib.blake2b(repr((len(rows), rows[0], rows[-1])).encode("utf-8", "replace"), digest_size=8)
    return f"{number}-{digest.hexdigest()}.arrow"


def _number_of(file: Path) -> int:
    return int(file.name.partition("-")[0])


def _files(folder: Path) -> list[Path]:
    """Return the parts in a folder; none if it is gone."""
    with contextlib.suppress(OSError):
        return list(folder.glob("*.arrow"))
    return []


def _read(file: Path) -> pa.RecordBatch:
    with pa.OSFile(str(file)) as opened:
        return pa.ipc.open_file(opened).get_batch(0)


def _is_of_living(folder: Path) -> bool:
    match = TEMPORARY.fullmatch(folder.name)
    return match is not None and is_alive(int(match[2]))
