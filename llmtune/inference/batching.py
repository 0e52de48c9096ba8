"""Requests that arrive together are answered together: a queue, and a thread that works on what stands in it.

A row joins a batch that is already being written: the batch is then read anew, with what its rows have so far behind
their prompts. That costs the reading, so it happens only once the batch has been writing for twice as long as its last
reading took.

A request that has been given much already (all the answers of its `n` together) makes room for others: long and short
ones never share a batch, in which each would be read anew at the length of the longest, and short ones have the larger
part of the time. Otherwise a few clients who ask for thousands of tokens would hold every place.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from llmtune.inference.engine import Engine
from llmtune.inference.rows import Row
from llmtune.utils.logging import get_logger

__all__ = ["Batcher", "Closed", "QueueFull"]

READING_SHARE = 2
"""Writing time before newcomers may join, in reading times."""
TURN_S = 1.0
"""Seconds after which a batch makes room for the requests of another adapter; its rows go to the end of the queue."""
LONG_TOKENS = 128
"""Tokens of a request's answers from which on it is long, while others wait."""
LONG_TURN_S = 0.25
"""Seconds after which a batch of long requests makes room for short ones."""
SHORT_SHARE = 4
"""Time of short requests for each second of long ones, where both wait."""

ASK_S = 0.01
"""Seconds between two looks at the queue: with hundreds of rows in it, one takes a part of a step."""

Key = tuple[str | None, bool]
"""What the rows of a batch have in common: the adapter, and whether their requests are long."""


class QueueFull(Exception):
    """No more requests can wait."""


class Closed(Exception):
    """No more requests are taken."""


@dataclass(slots=True, eq=False)
class _Waiting:
    row: Row
    adapter: str | None
    request: Sequence[Row]

    @property
    def key(self) -> Key:
        return self.adapter, sum(len(row.ids) for row in self.request) >= LONG_TOKENS


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
        self._key: Key = (None, False)  # of the batch that runs
        self._long_took = 0.0  # seconds of the last turn of long requests, and when it ended
        self._long_ended = 0.0
        self._long_limit = max_batch_size
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
            self._waiting.extend(_Waiting(row, adapter, rows) for row in rows)
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
            rows, (adapter, is_long) = [one.row for one in self._running], self._key
            started = time.monotonic()
            try:
                self.engine.advance(rows, adapter=adapter, until=_Until(self))
            except Exception as err:
                self._survive(err)
            if is_long:
                self._end_long_turn(time.monotonic() - started, len(rows))
            with self._changed:
                self._make_room(time.monotonic() - started)

    def _end_long_turn(self, seconds: float, num_rows: int) -> None:
        """Reading long rows anew is most of their turn: so many take one as it lasts about two writing times."""
        self._long_ended, self._long_took = time.monotonic(), seconds
        if seconds > 2 * LONG_TURN_S:
            self._long_limit = max(1, num_rows // 2)
        elif self._long_limit < self.max_batch_size:
            self._long_limit += 1

    def _make_room(self, seconds: float) -> None:
        """Rows whose turn is over go to the end of the queue; so do those that have become long, where others wait."""
        self._running = [one for one in self._running if one.row.finish_reason is None]
        if not self._waiting:
            return
        over = self._is_over(seconds)
        gone = [one for one in self._running if over or one.key != self._key]
        self._running = [one for one in self._running if one not in gone]
        self._waiting.extend(gone)

    def _is_over(self, seconds: float) -> bool:
        """Whether others have the next turn, after so many seconds of this batch."""
        adapter, is_long = self._key
        keys = {one.key for one in list(self._waiting)}
        if is_long and any(not key[1] for key in keys):
            return seconds > LONG_TURN_S
        if not is_long and any(key[1] for key in keys) and self._long_is_due():
            return True
        return seconds > TURN_S and any(key[0] != adapter and key[1] == is_long for key in keys)

    def _long_is_due(self) -> bool:
        rest = max(SHORT_SHARE * self._long_took, TURN_S)
        return time.monotonic() - self._long_ended > rest

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
                self._fill()
                if self._running:
                    return True
                if self._closed:
                    return False
                self._changed.wait()

    def _fill(self) -> None:
        """Let rows join: first come, first served among the short and among the long ones, also between adapters."""
        if not self._waiting:
            return
        if not self._running:
            self._key = self._next_key()
        adapter, is_long = self._key
        most = self._limit
        if is_long and any(not one.key[1] for one in self._waiting):
            most = min(most, self._long_limit)
        left: deque[_Waiting] = deque()
        closed = False
        while self._waiting:
            one = self._waiting.popleft()
            key = one.key
            closed = closed or (key[1] == is_long and key[0] != adapter)
            if key == self._key and not closed and len(self._running) < most:
                self._running.append(one)
            else:
                left.append(one)
        self._waiting = left

    def _next_key(self) -> Key:
        """Whose turn it is: the first short one's, unless long ones have waited for theirs."""
        keys = [one.key for one in self._waiting]
        first_long = next((key for key in keys if key[1]), None)
        first_short = next((key for key in keys if not key[1]), None)
        if first_short is None or (first_long is not None and self._long_is_due()):
            assert first_long is not None or first_short is not None
            return first_long or keys[0]
        return first_short

    def newcomers(self, seconds: float) -> bool:
        """Whether somebody could join, with the places that have become free since, or has the next turn.

        Args:
            seconds: For which the batch has been worked on.
        """
        waiting = list(self._waiting)
        left = [one for one in self._running if one.row.finish_reason is None]
        if not waiting or not left:
            return False
        if self._is_over(seconds):
            return True
        first = next((one for one in waiting if one.key[1] == self._key[1]), None)
        room = len(left) < self._limit or any(one.key != self._key for one in left)
        return first is not None and first.key == self._key and room

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
        self.asked = self.started

    def __call__(self) -> bool:
        now = time.monotonic()
        if self.read is None:
            self.read = now
            return False
        if now - self.read < READING_SHARE * (self.read - self.started):
            return False
        if now - self.asked < ASK_S:
            return False
        self.asked = now
        return self.batcher.newcomers(now - self.started)
