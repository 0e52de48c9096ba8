"""Packs: several samples in one sequence of up to max_length tokens, with almost no padding.

Packed sequences are attended to separately: `position_ids` restart at every one, where attention is cut. That
holds only without a cache and without an attention_mask, see collate.py; models/packed_attention.py tries it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from llmtune.types import IGNORE_INDEX

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmtune.samples.encode_report import EncodeReport
    from llmtune.samples.store import TokenStore


def plan_packs(lengths: Sequence[int] | NDArray[np.int64], capacity: int) -> NDArray[np.int32]:
    """Best-fit decreasing over all samples: longest first, each into the fullest pack that still has room.

    Args:
        lengths: Tokens of each row, 1 to `capacity`.
        capacity: Tokens of a pack at most.

    Returns:
        The pack of each row, numbered from 0. The same lengths give the same packs: resuming relies on it.
    """
    sizes = np.asarray(lengths, np.int32)
    pack_of = np.empty(len(sizes), np.int32)
    if len(sizes) == 0:
        return pack_of
    shortest, longest = int(sizes.min()), int(sizes.max())
    if shortest < 1 or longest > capacity:
        raise ValueError(f"a sample of {longest if shortest else 0} tokens does not fit into a pack of {capacity}")
    packs = _OpenPacks(capacity, shortest)
    counts = np.bincount(sizes)
    found = np.flatnonzero(counts)[::-1]
    groups = np.split(_longest_first(sizes, longest), np.cumsum(counts[found])[:-1])
    for size, rows in zip(found.tolist(), groups, strict=True):
        placed = 0
        while placed < len(rows):
            taken = packs.take(size, len(rows) - placed)
            pack_of[rows[placed : placed + len(taken)]] = taken
            placed += len(taken)
    return pack_of


def _longest_first(sizes: NDArray[np.int32], longest: int) -> NDArray[np.int64]:
    """Rows in order, the longest first; equal ones as they come. Small numbers are sorted by radix, in linear time."""
    return np.argsort((longest - sizes).astype(np.min_scalar_type(longest)), kind="stable")


class _OpenPacks:
    """Packs by the room that is left in each.

    Rows of one size are placed together: the fullest pack with room takes as many as it holds, since it stays the
    fullest with room for the next; then the pack beside it of the same room does.
    """

    def __init__(self, capacity: int, shortest: int) -> None:
        self._capacity = capacity
        self._shortest = shortest
        self._rooms: list[int] = []  # sorted: every amount of room that some open pack has
        self._with: dict[int, array[int]] = {}
        self._count = 0

    def take(self, size: int, rows: int) -> NDArray[np.int32]:
        """Return the packs of some of `rows` rows of `size` tokens: those that packs of equal room take."""
        place = bisect_left(self._rooms, size)
        room = self._rooms[place] if place < len(self._rooms) else self._capacity
        per_pack = room // size
        needed = -(-rows // per_pack)
        if place < len(self._rooms):
            packs = self._pop(place, needed)
        else:
            packs = np.arange(self._count, self._count + needed, dtype=np.int32)
            self._count += needed
        in_last = min(rows - (len(packs) - 1) * per_pack, per_pack)
        self._put(packs[:-1], room - per_pack * size)
        self._put(packs[-1:], room - in_last * size)
        return np.repeat(packs, per_pack)[: (len(packs) - 1) * per_pack + in_last]

    def _pop(self, place: int, most: int) -> NDArray[np.int32]:
        """Take packs of a room, the last that came first."""
        room = self._rooms[place]
        stack = self._with[room]
        found = np.array(stack[-most:], np.int32)[::-1]
        del stack[-most:]
        if not stack:
            del self._with[room], self._rooms[place]
        return found

    def _put(self, packs: NDArray[np.int32], room: int) -> None:
        if room < self._shortest or not len(packs):
            return
        if room not in self._with:
            self._with[room] = array("i")
            insort(self._rooms, room)
        self._with[room].frombytes(packs.tobytes())


class PackedDataset:
    """Packs over a store: `packs[i]` gives `input_ids`, `labels` and `position_ids` of equal length [T].

    With `loss_weights` where a row of the pack has them.

    Nothing is copied before a pack is asked for. Without a row that has images: their pixels have no place here.
    """

    def __init__(self, store: TokenStore, capacity: int) -> None:
        self.store = store
        self.capacity = capacity
        pack_of = plan_packs(store.lengths, capacity)
        self._rows = np.argsort(pack_of, kind="stable").astype(np.uint32)
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(pack_of))]).astype(np.int64)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        return join_rows([self.store[row] for row in self.rows_of(index)])

    def rows_of(self, index: int) -> list[int]:
        """Return the samples of a pack, as indices of the store, in order."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return [int(row) for row in self._rows[self._starts[index] : self._starts[index + 1]]]

    @property
    def report(self) -> EncodeReport:
        return self.store.report

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each pack."""
        return np.add.reduceat(self.store.lengths[self._rows], self._starts[:-1])


@runtime_checkable
class HasPacks(Protocol):
    """Packs over a store. `capacity`: tokens of a pack."""

    store: TokenStore
    capacity: int

    @property
    def lengths(self) -> NDArray[np.int64]: ...
    def __len__(self) -> int: ...


def packs_text(items: object) -> str:
    """Describe the packs in one line; "" without packing."""
    if getattr(items, "capacity", None) is None or not isinstance(items, HasPacks):
        return ""
    rows, filled = len(items.store) / len(items), items.lengths.mean() / items.capacity
    return f"{len(items):,} of up to {items.capacity:,} tokens, {rows:.1f} samples per pack, {filled:.2%} full"


def join_rows(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Concatenate samples, or packs, into one.

    The label of a sample's first token is IGNORE_INDEX: the model shifts labels, so it would be predicted from the end
    of the sample before it. Unpacked, the first token does not contribute to the loss either.
    """
    labels = np.concatenate([sample["labels"] for sample in samples])
    starts = np.cumsum([0, *(len(sample["labels"]) for sample in samples)])[:-1]
    labels[starts] = IGNORE_INDEX
    joined = {
        "input_ids": np.concatenate([sample["input_ids"] for sample in samples]),
        "labels": labels,
        "position_ids": np.concatenate([_positions(sample) for sample in samples]),
    }
    if any("loss_weights" in sample for sample in samples):
        joined["loss_weights"] = np.concatenate([loss_weights(sample) for sample in samples])
    return joined


def loss_weights(sample: dict[str, Any]) -> NDArray[np.float32]:
    """Loss weights of a sample's tokens; 1 by default."""
    found = sample.get("loss_weights")
    return np.ones(len(sample["input_ids"]), np.float32) if found is None else np.asarray(found, np.float32)


def _positions(sample: dict[str, Any]) -> NDArray[np.int64]:
    found = sample.get("position_ids")
    return np.arange(len(sample["input_ids"])) if found is None else found
