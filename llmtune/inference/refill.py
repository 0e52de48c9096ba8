"""Rows that are generated together: one that ends makes room for the next, and equal prompts are computed once.

What a row is, and how its next token is chosen, the caller says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from llmtune.inference.decode_forward import Forward
from llmtune.inference.row_cache import RowCache

PREFILL_TOKENS = 4096
"""Most tokens of prompts that are prefilled in one pass, padding included; at least one prompt."""

FREE_SHARE = 16
"""New rows join once a part of the rows of this size is free: each time costs a few copies per layer."""


class GeneratedRow(Protocol):
    """A response while it is generated."""

    @property
    def prompt_ids(self) -> Sequence[int]:
        """Ids to prefill when it joins, with those that it already has."""
        ...

    @property
    def last_id(self) -> int:
        """The id that was chosen last."""
        ...


RowT = TypeVar("RowT", bound=GeneratedRow)


class RefillBatch(Generic[RowT]):
    """The rows that are generated now, and those that wait.

    Args:
        rows: All rows, in the order in which they join; rows with equal prompts join together.
        choose: Chooses the next token of rows by their logits, [R, V]; returns which rows end with it.
        max_rows: Rows at a time.
    """

    def __init__(
        self,
        forward: Forward,
        rows: Sequence[RowT],
        choose: Callable[[Sequence[RowT], Tensor], list[bool]],
        max_rows: int,
    ) -> None:
        self._forward = forward
        self._choose = choose
        self._max_rows = min(max_rows, len(rows))  # the cache has room for them all
        self._groups = _equal_prompts(rows)
        self._prompts: _Prompts[RowT] | None = None
        self._running: list[RowT] = []
        self._cache: RowCache | None = None

    def step(self) -> int | None:
        """Choose the next token of each running row; returns how many rows ended, None once no row is left.

        The caller sets `model.eval()` and `torch.no_grad()`.
        """
        ended = self._admit()
        if not self._running:
            return ended or None
        assert self._cache is not None
        logits = self._forward.step([row.last_id for row in self._running], self._cache)
        return ended + self._leave(self._choose(self._running, logits))

    @property
    def _has_waiting(self) -> bool:
        return bool(self._groups or (self._prompts and self._prompts.waiting))

    def _admit(self) -> int:
        """Fill the free rows, if they are enough; returns how many rows ended with their first token."""
        ended = 0
        free = self._max_rows - len(self._running)
        if self._running and free < max(1, self._max_rows // FREE_SHARE):
            return ended
        while self._has_waiting and len(self._running) < self._max_rows:
            if self._prompts is None or not self._prompts.waiting:
                self._prompts = None  # its KV is freed before the next is made
                self._prompts = _Prompts(self._forward, self._next_groups(self._max_rows - len(self._running)))
            ended += self._join(self._prompts)
        return ended

    def _next_groups(self, free: int) -> list[list[RowT]]:
        """Return the groups to prefill: those that fill the free rows, within PREFILL_TOKENS."""
        found = [self._groups.popleft()]
        longest, count = len(found[0][0].prompt_ids), len(found[0])
        while self._groups and count < free:
            longest = max(longest, len(self._groups[0][0].prompt_ids))
            if (len(found) + 1) * longest > PREFILL_TOKENS:
                break
            found.append(self._groups.popleft())
            count += len(found[-1])
        return found

    def _join(self, prompts: _Prompts[RowT]) -> int:
        """Choose the first token of rows that wait, as many as are free; those that go on join the batch."""
        taken = prompts.take(self._max_rows - len(self._running))
        places = torch.tensor([place for place, _ in taken], device=prompts.logits.device)
        ends = self._choose([row for _, row in taken], prompts.logits[places])
        staying: dict[int, list[RowT]] = {}
        for (place, row), end in zip(taken, ends, strict=True):
            if not end:
                staying.setdefault(place, []).append(row)
        for place, rows in staying.items():
            if self._cache is None:
                self._cache = RowCache(self._max_rows, len(prompts.cache.layers))
            self._cache.join(prompts.cache, place, prompts.lengths[place], len(rows))
            self._running += rows
        return sum(ends)

    def _leave(self, ends: list[bool]) -> int:
        if not any(ends):
            return 0
        assert self._cache is not None
        gone = [number for number, end in enumerate(ends) if end]
        if not self._has_waiting:
            self._cache.finish_joining()
        self._running = [self._running[number] for number in self._cache.leave(gone)]
        return len(gone)


class _Prompts(Generic[RowT]):
    """Prefilled prompts whose rows have not all joined yet. `lengths`: tokens of each."""

    def __init__(self, forward: Forward, groups: Sequence[list[RowT]]) -> None:
        prompts = [group[0].prompt_ids for group in groups]
        self.lengths = [len(prompt) for prompt in prompts]
        logits, self.cache = forward.prefill(prompts)
        self.logits = logits.float()
        self.waiting = deque((place, row) for place, group in enumerate(groups) for row in group)

    def take(self, count: int) -> list[tuple[int, RowT]]:
        return [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]


def _equal_prompts(rows: Sequence[RowT]) -> deque[list[RowT]]:
    """Return the rows of equal prompts together, in the order of the first of each."""
    groups: dict[tuple[int, ...], list[RowT]] = {}
    for row in rows:
        groups.setdefault(tuple(row.prompt_ids), []).append(row)
    return deque(groups.values())
