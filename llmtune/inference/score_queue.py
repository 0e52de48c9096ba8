"""Scores of several callers in shared batches: a queue in front of a scorer, and a thread that works on it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

from llmtune.inference.batching import Closed, QueueFull
from llmtune.inference.score import Scorer
from llmtune.utils.logging import get_logger


@dataclass(slots=True, eq=False)
class _Job:
    """The sequences of one caller, scored in order. `future`: their scores; cancelled by a caller that has gone."""

    size: int
    found: list[float] = field(default_factory=list)
    future: Future[list[float]] = field(default_factory=Future)

    def add(self, score: float) -> None:
        self.found.append(score)
        if len(self.found) == self.size:
            with suppress(InvalidStateError):  # cancelled
                self.future.set_result(self.found)

    def fail(self, err: Exception) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(err)


_Waiting = tuple[_Job, Sequence[int]]


class ScoreQueue:
    """A queue in front of a scorer.

    Args:
        max_batch_size: Sequences that are scored in one batch.
        max_queue: Further sequences that may wait.
    """

    def __init__(self, scorer: Scorer, *, max_batch_size: int, max_queue: int) -> None:
        self._scorer = scorer
        self._max_batch_size, self._max_queue = max_batch_size, max_queue
        self._waiting: deque[_Waiting] = deque()
        self._running: list[_Waiting] = []
        self._changed = threading.Condition()
        self.is_closed = False
        self._worker = threading.Thread(target=self._work, name="llmtune-scores", daemon=True)
        self._worker.start()

    def submit(self, sequences: Sequence[Sequence[int]]) -> Future[list[float]]:
        """Queue sequences of ids, and return their scores to be.

        Raises:
            QueueFull: The queue has too few slots. Closed: The queue has been closed.
        """
        job = _Job(len(sequences))
        with self._changed:
            if self.is_closed:
                raise Closed
            self._drop_cancelled()
            free = self._max_batch_size - len(self._running) + self._max_queue
            if len(self._waiting) + len(sequences) > free:
                raise QueueFull
            self._waiting.extend((job, ids) for ids in sequences)
            self._changed.notify_all()
        return job.future

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def refuse(self) -> None:
        """Close the queue without waiting."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()

    def close(self, *, timeout: float | None = None) -> None:
        """Close the queue, and finish the sequences in it."""
        self.refuse()
        self._worker.join(timeout)

    def _work(self) -> None:
        while self._admit():
            self._score(self._running)
            with self._changed:
                self._running = []

    def _admit(self) -> bool:
        """Take a batch from the head of the queue; wait while there is nothing to do. False once closed and empty."""
        with self._changed:
            while True:
                self._drop_cancelled()
                if self._waiting:
                    count = min(self._max_batch_size, len(self._waiting))
                    self._running = [self._waiting.popleft() for _ in range(count)]
                    return True
                if self.is_closed:
                    return False
                self._changed.wait()

    def _score(self, batch: Sequence[_Waiting]) -> None:
        """Score a batch; one that fails is retried in halves, and what fails alone gets the error."""
        try:
            scores = self._scorer.scores([ids for _, ids in batch], len(batch))
        except Exception as err:  # of memory, mostly: the thread has to survive any
            if len(batch) == 1:
                get_logger().error("A score failed: %s: %s", type(err).__name__, err)
                batch[0][0].fail(err)
                return
            get_logger().warning("A batch of %d scores failed (%s); retrying in halves.", len(batch), err)
            half = len(batch) // 2
            self._score(batch[:half])
            self._score(batch[half:])
            return
        for (job, _), score in zip(batch, scores, strict=True):
            job.add(score)

    def _drop_cancelled(self) -> None:
        if any(job.future.done() for job, _ in self._waiting):
            self._waiting = deque(one for one in self._waiting if not one[0].future.done())
