"""Requests that arrive together are answered together: a queue, and a thread that works on what stands in it.

A row joins a batch that is already being written: the batch is then read anew, with what its rows have so far behind
their prompts. That costs the reading, so it happens only once the batch has been writing for twice as long as its last
reading took.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmtune.inference.engine import Engine
from llmtune.inference.rows import Row
from llmtune.utils.logging import get_logger

__all__ = ["Batcher", "Closed", "QueueFull"]

READING_SHARE = 2
"""Writing time before newcomers may join, in reading times."""
TURN_S = 1.0
"""Seconds after which a batch makes room for the requests of another adapter; its rows go to the end of the queue."""


class QueueFull(Exception):
    """No more requests can wait."""


class Closed(Exception):
    """No more requests are taken."""


@dataclass(slots=True, eq=False)
class _Waiting:
    row: Row
    adapter: str | None
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """A queue in front of an engine.

    Args:
        max_batch_size: Rows that are written side by side.
        max_queue: Rows that may wait besides.
    """

    def __init__(self, engine: Engine, *, max_batch_size: int = 16, max_queue: int = 256) -> None:
        self.engine = engine
        self.max_batch_size = max_batch_size
        self.max_queue = max_queue
        self._waiting: deque[_Waiting] = deque()
        self._running: list[_Waiting] = []
        self._limit = max_batch_size  # less, after a batch that did not fit into memory
        self._changed = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="llmtune-batcher", daemon=True)
        self._worker.start()

    def submit(self, rows: Sequence[Row], *, adapter: str | None = None) -> None:
        """Let rows be written; they tell their pieces themselves.

        Raises:
            QueueFull: So many more cannot wait. Closed: The queue has been closed.
        """
        with self._changed:
            if self._closed:
                raise Closed
            self._drop_cancelled()
            free = self.max_batch_size - len(self._running) + self.max_queue
            if len(self._waiting) + len(rows) > free:
                raise QueueFull
            self._waiting.extend(_Waiting(row, adapter) for row in rows)
            self._changed.notify_all()

    def forget_cancelled(self) -> None:
        """Take those out of the queue that nobody waits for any more."""
        with self._changed:
            self._drop_cancelled()

    def close(self, *, timeout: float | None = None) -> None:
        """Take nothing more, and finish what has been taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._worker:
            self._worker.join(timeout)

    def refuse(self) -> None:
        """Take nothing more; does not wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def num_running(self) -> int:
        return sum(one.row.finish_reason is None for one in list(self._running))

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    # The worker

    def _work(self) -> None:
        while self._admit():
            rows, adapter = [one.row for one in self._running], self._running[0].adapter
            try:
                self.engine.advance(rows, adapter=adapter, until=_Until(self))
            except Exception as err:
                self._survive(err)
            with self._changed:
                self._running = [one for one in self._running if one.row.finish_reason is None]
                if self._running and self._waiting and self._waiting[0].adapter != self._running[0].adapter:
                    self._waiting.extend(self._running)
                    self._running = []

    def _admit(self) -> bool:
        """Fill the batch from the head of the queue; wait where there is nothing to do. False at the very end."""
        with self._changed:
            while True:
                self._drop_cancelled()
                for one in self._running:
                    if one.row.is_cancelled:
                        one.row.finish("cancelled")
                self._running = [one for one in self._running if one.row.finish_reason is None]
                if not self._running:
                    self._limit = self.max_batch_size if len(self._waiting) < self._limit else self._limit
                while self._joins():
                    self._running.append(self._waiting.popleft())
                if self._running:
                    return True
                if self._closed:
                    return False
                self._changed.wait()

    def _joins(self) -> bool:
        """Whether the head of the queue can join: first come, first served, also between adapters."""
        if not self._waiting or len(self._running) >= self._limit:
            return False
        return not self._running or self._waiting[0].adapter == self._running[0].adapter

    def newcomers(self, seconds: float) -> bool:
        """Whether somebody could join, with the places that have become free since, or has the next turn.

        Args:
            seconds: For which the batch has been worked on.
        """
        waiting = next(iter(self._waiting), None)
        left = [one for one in self._running if one.row.finish_reason is None]
        if waiting is None or not left:
            return False
        if waiting.adapter != left[0].adapter:
            return seconds > TURN_S
        return len(left) < self._limit

    def _drop_cancelled(self) -> None:
        gone = [one for one in self._waiting if one.row.is_cancelled]
        if gone:
            self._waiting = deque(one for one in self._waiting if not one.row.is_cancelled)
            for one in gone:
                one.row.finish("cancelled")

    def _survive(self, err: Exception) -> None:
        """A batch that failed is tried again in halves; a row that fails alone is told."""
        left = [one for one in self._running if one.row.finish_reason is None]
        if len(left) == 1:
            get_logger().error("An answer failed: %s: %s", type(err).__name__, err)
            left[0].row.fail(err)
            return
        get_logger().warning(
            "A batch of %d failed (%s: %s); it goes on in halves.", len(left), type(err).__name__, str(err)[:200]
        )
        with self._changed:
            self._limit = max(1, len(left) // 2)
            self._waiting.extendleft(reversed(left[self._limit :]))
            self._running = left[: self._limit]


class _Until:
    """Asked after each step of a batch: whether it is to stop, so that newcomers can join it."""

    def __init__(self, batcher: Batcher) -> None:
        self.batcher = batcher
        self.started = time.monotonic()
        self.read: float | None = None

    def __call__(self) -> bool:
        now = time.monotonic()
        if self.read is None:
            self.read = now
            return False
        if now - self.read < READING_SHARE * (self.read - self.started):
            return False
        return self.batcher.newcomers(now - self.started)
