"""Batch requests that arrive together: a queue, and a thread that works on it.

A row joins a running batch: the batch is then prefilled again, with each row's tokens so far after its prompt. That
costs the prefill, so it happens only once the batch has been decoding for twice as long as its last prefill took.

A request that has generated many tokens (all its `n` generations together) yields to others: long and short ones never
share a batch, in which each would be prefilled again at the length of the longest, and short ones get the larger share
of the time. Otherwise a few clients who ask for thousands of tokens would hold every slot.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from llmtune.inference.engine import Engine
from llmtune.inference.generation import Generation
from llmtune.utils.logging import get_logger

READING_SHARE = 2
"""Decoding time before new rows may join, in prefill times."""
TURN_S = 1.0
"""Seconds after which a batch yields to the requests of another adapter; its rows go to the end of the queue."""
LONG_TOKENS = 128
"""Generated tokens from which a request counts as long, while others wait."""
LONG_TURN_S = 0.25
"""Seconds after which a batch of long requests yields to short ones."""
SHORT_SHARE = 4
"""Seconds of short requests per second of long ones, where both wait."""

ASK_S = 0.01
"""Seconds between two checks of the queue: with hundreds of rows, one takes a noticeable part of a step."""

Key = tuple[str | None, bool]
"""Key shared by the rows of a batch: the adapter, and whether their requests are long."""


class QueueFull(Exception):
    """The queue is full."""


class Closed(Exception):
    """The queue is closed to new requests."""


@dataclass(slots=True, eq=False)
class _Waiting:
    row: Generation
    adapter: str | None
    request: Sequence[Generation]

    @property
    def key(self) -> Key:
        return self.adapter, sum(len(row.ids) for row in self.request) >= LONG_TOKENS


class Batcher:
    """A queue in front of an engine.

    Args:
        max_batch_size: Rows that are generated in one batch.
        max_queue: Further rows that may wait.
    """

    def __init__(self, engine: Engine, *, max_batch_size: int = 16, max_queue: int = 256) -> None:
        self.engine = engine
        self.max_batch_size = max_batch_size
        self.max_queue = max_queue
        self._waiting: deque[_Waiting] = deque()
        self._running: list[_Waiting] = []
        self._key: Key = (None, False)  # of the running batch
        self._long_took = 0.0  # seconds of the last turn of long requests, and when it ended
        self._long_ended = 0.0
        self._long_limit = max_batch_size
        self._limit = max_batch_size  # less, after a batch that did not fit into memory
        self._changed = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="llmtune-batcher", daemon=True)
        self._worker.start()

    def submit(self, rows: Sequence[Generation], *, adapter: str | None = None) -> None:
        """Queue rows for generation; they emit their pieces themselves.

        Raises:
            QueueFull: The queue has too few slots. Closed: The queue has been closed.
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
        """Remove cancelled rows from the queue."""
        with self._changed:
            self._drop_cancelled()

    def close(self, *, timeout: float | None = None) -> None:
        """Close the queue, and finish the rows in it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._worker:
            self._worker.join(timeout)

    def refuse(self) -> None:
        """Close the queue without waiting."""
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
        """Limit the rows of a long batch, most of whose turn is prefill, to about two decoding times."""
        self._long_ended, self._long_took = time.monotonic(), seconds
        if seconds > 2 * LONG_TURN_S:
            self._long_limit = max(1, num_rows // 2)
        elif self._long_limit < self.max_batch_size:
            self._long_limit += 1

    def _make_room(self, seconds: float) -> None:
        """Move rows whose turn is over to the end of the queue, and rows that have become long, where others wait."""
        self._running = [one for one in self._running if one.row.finish_reason is None]
        if not self._waiting:
            return
        over = self._is_over(seconds)
        gone = [one for one in self._running if over or one.key != self._key]
        self._running = [one for one in self._running if one not in gone]
        self._waiting.extend(gone)

    def _is_over(self, seconds: float) -> bool:
        """Return whether others have the next turn, after this many seconds of the batch."""
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
        """Fill the batch from the head of the queue; wait while there is nothing to do. False once closed and empty."""
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
        """Add rows: first come, first served among the short and among the long ones, also between adapters."""
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
        """Return the key of the next batch: the first short row's, unless long ones have waited for their turn."""
        keys = [one.key for one in self._waiting]
        first_long = next((key for key in keys if key[1]), None)
        first_short = next((key for key in keys if not key[1]), None)
        if first_short is None or (first_long is not None and self._long_is_due()):
            assert first_long is not None or first_short is not None
            return first_long or keys[0]
        return first_short

    def newcomers(self, seconds: float) -> bool:
        """Return whether a row could join in a free slot, or has the next turn.

        Args:
            seconds: Running time of the batch.
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
        """Retry a failed batch in halves; a row that fails alone gets the error."""
        left = [one for one in self._running if one.row.finish_reason is None]
        if len(left) == 1:
            get_logger().error("A generation failed: %s: %s", type(err).__name__, err)
            left[0].row.fail(err)
            return
        get_logger().warning(
            "A batch of %d failed (%s: %s); retrying in halves.", len(left), type(err).__name__, str(err)[:200]
        )
        with self._changed:
            self._limit = max(1, len(left) // 2)
            self._waiting.extendleft(reversed(left[self._limit :]))
            self._running = left[: self._limit]


class _Until:
    """Return, after each step of a batch, whether it should stop so that new rows can join."""

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
