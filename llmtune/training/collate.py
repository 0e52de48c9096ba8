"""Samples to a batch: padded on the right, with the pixels of their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmtune.templates.images import ImageReader
from llmtune.types import IGNORE_INDEX

__all__ = ["PaddingCollator"]


@dataclass(frozen=True)
class PaddingCollator:
    """Pads each batch to its longest sample.

    Gives `input_ids`, `attention_mask` and `labels`, all int64 [B, T]; padding has mask 0 and IGNORE_INDEX. Where
    samples have images, also what `images` makes of them for the model.
    """

    pad_token_id: int
    images: ImageReader | None = None

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
        batch = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
        if self.images is not None:
            batch |= self.images.inputs([path for sample in samples for path in sample.get("images", ())], input_ids)
        return batch
