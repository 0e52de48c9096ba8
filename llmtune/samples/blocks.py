"""Blocks: all documents joined into one sequence of tokens, and cut into blocks of max_length.

Attention crosses the documents of a block. A block begins with the last token of the one before, as context of its
first trainable token: each token of the sequence but the very first is a label once. The last block may be shorter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from llmtune.samples.packing import loss_weights
from llmtune.templates.documents import window_bounds
from llmtune.types import IGNORE_INDEX

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmtune.samples.encode_report import EncodeReport
    from llmtune.samples.store import TokenStore


class JoinedDataset:
    """Blocks over a store: `blocks[i]` gives `input_ids` and `labels` of equal length [T].

    With `loss_weights` where a document of the block has them. Nothing is copied before a block is asked for.
    """

    def __init__(self, store: TokenStore, size: int) -> None:
        self.store = store
        self.size = size
        self._starts = np.concatenate([[0], np.cumsum(store.lengths)])
        self._bounds = np.array(list(window_bounds(int(self._starts[-1]), size)), np.int64)

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = self.rows_of(index)
        start, end = self._bounds[index] - self._starts[rows[0]]
        return _cut(_joined(self.store[row] for row in rows), int(start), int(end))

    def rows_of(self, index: int) -> list[int]:
        """Return the samples that a block has tokens of, as indices of the store, in order."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self._bounds[index]
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        return list(range(first, int(np.searchsorted(self._starts, end, side="left"))))

    @property
    def report(self) -> EncodeReport:
        return self.store.report

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each block."""
        return np.asarray(self._bounds[:, 1] - self._bounds[:, 0], np.int64)


def blocks_text(items: object) -> str:
    """Describe the blocks in one line; "" for anything else."""
    if not isinstance(items, JoinedDataset):
        return ""
    last = int(items.lengths[-1])
    text = f"{len(items):,} of {items.size:,} tokens, attention crosses documents"
    return text if last == items.size else f"{text}; the last one has {last:,} tokens and is kept"


def join_blocks(samples: Sequence[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """Join some samples and cut them into blocks, each identified by the first sample that it has tokens of."""
    if not samples:
        return []
    starts = np.cumsum([0, *(len(sample["labels"]) for sample in samples)])
    whole = _joined(samples)
    found = []
    for start, end in window_bounds(int(starts[-1]), size):
        first = int(np.searchsorted(starts, start, side="right")) - 1
        found.append(_cut(whole, start, end) | {"sample": samples[first]["sample"]})
    return found


def _joined(samples: Iterable[dict[str, Any]]) -> dict[str, Any]:
    samples = list(samples)
    joined = {name: np.concatenate([sample[name] for sample in samples]) for name in ("input_ids", "labels")}
    if any("loss_weights" in sample for sample in samples):
        joined["loss_weights"] = np.concatenate([loss_weights(sample) for sample in samples])
    return joined


def _cut(joined: dict[str, Any], start: int, end: int) -> dict[str, Any]:
    block = {name: values[start:end] for name, values in joined.items()}
    labels = block["labels"].copy()
    labels[0] = IGNORE_INDEX
    return block | {"labels": labels}
