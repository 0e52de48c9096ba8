"""Batches of comparisons: each response as a sequence of its own, behind the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmtune.samples.collate import PackingCollator, PaddingCollator
from llmtune.templates.comparisons import EncodedComparison
from llmtune.types import IGNORE_INDEX, media_columns

PAIRS = "pairs"
"""Key of the pairs of a batch, [n, 2]: the sequences of the better and of the worse response."""
REFERENCE = "reference"
"""Key of the log-probabilities of the sequences under the reference model, [number of sequences] in fp32."""


@dataclass(frozen=True)
class ComparisonCollator:
    """Lays out the responses of comparisons, the best first, and names the pairs that differ in rank.

    Attributes:
        sequences: Makes a batch of the sequences: padded, or flat.
    """

    sequences: PaddingCollator | PackingCollator

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        samples: list[dict[str, Any]] = []
        pairs: list[tuple[int, int]] = []
        reference: list[float] = []
        for item in items:
            comparison: EncodedComparison = item["comparison"]
            start = len(samples)
            samples += [_sequence(comparison, at) for at in range(len(comparison.responses))]
            ranks = [response.rank for response in comparison.responses]
            pairs += [
                (start + better, start + worse)
                for better in range(len(ranks))
                for worse in range(len(ranks))
                if ranks[better] < ranks[worse]
            ]
            reference += item.get(REFERENCE, ())
        batch: dict[str, Any] = {**self.sequences(samples), PAIRS: torch.tensor(pairs).reshape(-1, 2)}
        if reference:
            batch[REFERENCE] = torch.tensor(reference, dtype=torch.float32)
        return batch


def _sequence(comparison: EncodedComparison, at: int) -> dict[str, Any]:
    response = comparison.responses[at]
    return {
        "input_ids": comparison.prompt + response.input_ids,
        "labels": [IGNORE_INDEX] * len(comparison.prompt) + response.labels,
        **media_columns(comparison.media),
    }
