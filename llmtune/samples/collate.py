"""Collators: samples padded on the right, with the pixels of their images, or packed into sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmtune.models.packed_attention import segments
from llmtune.samples.packing import join_rows, loss_weights
from llmtune.templates.media import MediaReader
from llmtune.types import IGNORE_INDEX, media_of

WEIGHTS = "loss_weights"
"""Key of the token weights in a batch: float32 bits as int32, [B, T]. Sharding and bf16 cast floating-point inputs, so
that the weights would no longer match the sum of the step."""
SAMPLES = "samples"
"""Key of the sample indices in a batch."""


@dataclass(frozen=True)
class PaddingCollator:
    """Pads each batch to its longest sample.

    Gives `input_ids`, `attention_mask` and `labels`, all int64 [B, T]; padding has mask 0 and IGNORE_INDEX. Where
    samples have images, also what `media` makes of them for the model.
    """

    pad_token_id: int
    media: MediaReader | None = None

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        length = max(len(sample["input_ids"]) for sample in samples)
        shape = (len(samples), length)
        input_ids = torch.full(shape, self.pad_token_id, dtype=torch.long)
        labels = torch.full(shape, IGNORE_INDEX, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.long)
        for row, sample in enumerate(samples):
            size = len(sample["input_ids"])
            input_ids[row, :size] = torch.tensor(sample["input_ids"])
            labels[row, :size] = torch.tensor(sample["labels"])
            mask[row, :size] = 1
        batch = {"input_ids": input_ids, "attention_mask": mask, "labels": labels} | _numbers(samples)
        batch |= _weights(samples, shape)
        if self.media is not None:
            batch |= self.media.inputs([one for sample in samples for one in media_of(sample)], input_ids)
        return batch


@dataclass(frozen=True)
class PackingCollator:
    """Collates packs or samples into batches whose restarting `position_ids` separate the packed sequences.

    Gives `input_ids`, `position_ids` and `labels`, all int64 [B, T], and no attention_mask: with one, even of ones,
    transformers treats it as a single sequence. Padding has position 0 and IGNORE_INDEX throughout, so each of its
    tokens is a sequence of its own.

    Attributes:
        flat: All samples become one sequence, [1, T], without padding. Flash attention needs it: in a batch of several
            sequences it takes each for a single row.
        with_segments: Also pass the bounds of the sequences (see `models.packed_attention.segments`), which
            FlashAttention would otherwise compute in every layer, waiting for the GPU each time. Needs `flat`.
    """

    pad_token_id: int
    flat: bool = False
    with_segments: bool = False

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        joined = [join_rows(samples)] if self.flat else [join_rows([sample]) for sample in samples]
        shape = (len(joined), max(len(sample["input_ids"]) for sample in joined))
        batch: dict[str, Any] = {}
        for name, padding in (("input_ids", self.pad_token_id), ("position_ids", 0), ("labels", IGNORE_INDEX)):
            batch[name] = torch.full(shape, padding, dtype=torch.long)
            for row, sample in enumerate(joined):
                batch[name][row, : len(sample[name])] = torch.from_numpy(sample[name])
        batch |= segments(batch["position_ids"]) if self.with_segments else {}
        return batch | _numbers(samples) | _weights(joined, shape)


def _weights(samples: Sequence[dict[str, Any]], shape: tuple[int, int]) -> dict[str, Tensor]:
    """`loss_weights`, if any sample of the batch has them."""
    if not any(WEIGHTS in sample for sample in samples):
        return {}
    weights = torch.ones(shape, dtype=torch.float32)
    for row, sample in enumerate(samples):
        weights[row, : len(sample["input_ids"])] = torch.tensor(loss_weights(sample))
    return {WEIGHTS: weights.view(torch.int32)}


def _numbers(samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """`samples`, [n]: the index of each, if known. The trainer removes it before the forward pass."""
    if "sample" not in samples[0]:
        return {}
    return {SAMPLES: torch.tensor([sample["sample"] for sample in samples])}


def num_useful(batch: dict[str, Tensor]) -> Tensor:
    """Number of tokens of a batch without padding, [], on its device; without a mask, padding has position 0."""
    if "attention_mask" in batch:
        return batch["attention_mask"].sum()
    positions = batch["position_ids"]
    starts = nn.functional.pad(positions, (0, 1))[:, 1:] == 1
    return (starts | (positions > 0)).sum()
