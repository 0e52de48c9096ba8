"""Batches of labelled responses, and beside them the same prompts with responses of others, to measure a KL on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmtune.samples.comparisons import COMPARISONS, REFERENCE, ComparisonCollator

MISMATCHED = "mismatched"
"""Key of the second batch."""


@dataclass(frozen=True)
class LabelledCollator:
    """Splits items of two responses, the prompt's own and another's, into two batches.

    Attributes:
        responses: Makes a batch of comparisons.
    """

    responses: ComparisonCollator

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = self.responses([_with_response(item, 0) for item in items])
        others = [_with_response(item, 1) for item in items]
        return batch | {MISMATCHED: self.responses([_unnumbered(item) for item in others])}


def _with_response(item: dict[str, Any], at: int) -> dict[str, Any]:
    if COMPARISONS not in item:  # a filler
        return item
    return {**item, COMPARISONS: [only_response(one, at) for one in item[COMPARISONS]]}


def _unnumbered(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name != "sample"}


def only_response(comparison: dict[str, Any], at: int) -> dict[str, Any]:
    """Return a comparison with one of its responses."""
    prompt = int(comparison["parts"][0])
    edges = np.cumsum(comparison["parts"])
    start, end = int(edges[at]), int(edges[at + 1])
    found = comparison | {
        name: np.concatenate([comparison[name][:prompt], comparison[name][start:end]])
        for name in ("input_ids", "labels")
    }
    found |= {"parts": np.array([prompt, end - start], np.int32), "ranks": comparison["ranks"][at : at + 1]}
    if REFERENCE in comparison:
        found[REFERENCE] = comparison[REFERENCE][at : at + 1]
    return found
