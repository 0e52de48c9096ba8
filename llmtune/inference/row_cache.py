"""KV cache of rows that come and go: all end at the same column, so that each step writes one column.

transformers' own DynamicCache concatenates, which copies the whole cache at each step. Here a buffer has room for BLOCK
more columns. A row that ends is overwritten by the last one, and columns that are padding for all the rows are left
out of the view.

Shapes: R rows, H key-value heads, C columns of the buffer, W columns in use, D dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

BLOCK = 64
"""Columns by which the buffers grow."""


@dataclass(slots=True)
class _Extent:
    """The part of the buffers in use: rows [0, num_rows), columns [start, end)."""

    num_rows: int = 0
    start: int = 0
    end: int = 0
    num_columns: int = 0


class _RowLayer(DynamicLayer):
    """One layer's buffers, [R, H, C, D] each; keys and values may have another dtype and D."""

    def __init__(self, extent: _Extent) -> None:
        super().__init__()
        self.extent = extent
        self.buffers: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the next column, [R, H, 1, D] each, and return all of them, [R, H, W + 1, D]."""
        keys, values = self.buffers
        rows, start, end = self.extent.num_rows, self.extent.start, self.extent.end
        keys[:rows, :, end] = key_states[:, :, 0]
        values[:rows, :, end] = value_states[:, :, 0]
        return keys[:rows, :, start : end + 1], values[:rows, :, start : end + 1]

    def get_seq_length(self) -> int:
        return self.extent.end - self.extent.start

    def move(self, target: Tensor, source: Tensor) -> None:
        """Copy rows onto others."""
        used = slice(self.extent.start, self.extent.end)
        for buffer in self.buffers:
            moved = buffer.index_select(0, source.to(buffer.device))[:, :, used]
            buffer[:, :, used].index_copy_(0, target.to(buffer.device), moved)

    def grow(self, like: Sequence[Tensor], num_rows: int, extent: _Extent) -> None:
        """Take new buffers, for `num_rows`, with the columns in use where the new extent has them."""
        old = self.extent
        for place, one in enumerate(like):
            # zeros, not empty: padding is masked, but 0 times NaN is NaN
            new = one.new_zeros(num_rows, one.shape[1], extent.num_columns, one.shape[3])
            if old.num_rows:
                used = self.buffers[place][: old.num_rows, :, old.start : old.end]
                new[: old.num_rows, :, extent.end - used.shape[2] : extent.end] = used
            self.buffers[place : place + 1] = [new]
        self.is_initialized = True


class RowCache(DynamicCache):
    """The KV of up to `max_rows` rows of different lengths, left-padded to the same end.

    Rows are numbered from 0, without gaps; `lengths` has the columns of each that are not padding.
    """

    def __init__(self, max_rows: int, num_layers: int) -> None:
        self.extent = _Extent()
        self.lengths: list[int] = []
        self._max_rows = max_rows
        self._rows: list[_RowLayer] = [_RowLayer(self.extent) for _ in range(num_layers)]
        Cache.__init__(self, layers=list(self._rows))

    @property
    def width(self) -> int:
        return self.extent.end - self.extent.start

    @property
    def is_padded(self) -> bool:
        return min(self.lengths) < self.width

    def join(self, prompts: DynamicCache, place: int, length: int, count: int) -> None:
        """Append `count` rows that begin with the same prompt.

        Args:
            prompts: The KV of left-padded prompts.
            place: Number of the prompt in it.
            length: Tokens of the prompt.
        """
        first = self.extent.num_rows
        if self.extent.end < length or self.extent.end >= self.extent.num_columns:
            self._grow(prompts, max(self.width, length))
        for layer, source in zip(self._rows, prompts.layers, strict=True):
            for buffer, states in zip(layer.buffers, (source.keys, source.values), strict=True):
                buffer[first : first + count, :, self.extent.end - length : self.extent.end] = states[
                    place : place + 1, :, -length:
                ]
        self.lengths += [length] * count
        self.extent.num_rows += count
        self._trim()

    def leave(self, numbers: Sequence[int]) -> list[int]:
        """Remove rows; returns the former numbers of those that stay, in their new order."""
        gone = set(numbers)
        left = self.extent.num_rows - len(gone)
        holes = sorted(number for number in gone if number < left)
        movers = [number for number in range(left, self.extent.num_rows) if number not in gone]
        if holes:
            for layer in self._rows:
                layer.move(torch.tensor(holes), torch.tensor(movers))
        order = list(range(left))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        self.lengths = [self.lengths[number] for number in order]
        self.extent.num_rows = left
        self._trim()
        return order

    def advance(self) -> None:
        """Count the column that a step has written; make room for the next one."""
        self.extent.end += 1
        self.lengths = [length + 1 for length in self.lengths]
        if self.extent.end >= self.extent.num_columns:
            self._grow(None, self.width)

    def finish_joining(self) -> None:
        """No more rows will come: buffers that are made from now on have room for those that are left."""
        self._max_rows = 0

    def _trim(self) -> None:
        self.extent.start = self.extent.end - max(self.lengths, default=0)

    def _grow(self, prompts: DynamicCache | None, end: int) -> None:
        new = _Extent(self.extent.num_rows, 0, end, -(-(end + 1) // BLOCK) * BLOCK + BLOCK)
        for number, layer in enumerate(self._rows):
            source = prompts.layers[number] if prompts is not None else None
            like = layer.buffers if source is None else [source.keys, source.values]
            layer.grow(like, max(self._max_rows, self.extent.num_rows), new)
        new.start = end - self.width
        self.extent.start, self.extent.end, self.extent.num_columns = new.start, new.end, new.num_columns
