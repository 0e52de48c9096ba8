"""Samples as people read them: tokens with those marked that contribute to the loss."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

from llmtune.samples.prepare import Prepared
from llmtune.templates.mask_view import TokenView, token_views, with_short_media


def sample_views(prepared: Prepared, index: int) -> list[tuple[str, list[TokenView]]]:
    """Return the parts of a training sample with their names: of a comparison, the prompt once and each response."""
    sample = prepared.train_tokens[index]
    views = token_views(prepared.tokenizer, sample["input_ids"].tolist(), sample["labels"].tolist())
    parts = [("", views)]
    if "parts" in sample:
        edges = list(accumulate(sample["parts"].tolist(), initial=0))
        names = ["prompt", *response_names(sample)]
        parts = [(name, views[start:end]) for name, (start, end) in zip(names, pairwise(edges), strict=True)]
    if prepared.template.media is not None:
        parts = [(name, with_short_media(part, prepared.template.media_token_ids)) for name, part in parts]
    return parts


def response_names(sample: dict[str, Any]) -> list[str]:
    """Name the responses of a comparison: chosen and rejected, good or bad, or by their rank."""
    ranks = sample["ranks"].tolist()
    if sample["label"] is not None:
        return ["good response" if sample["label"] else "bad response"]
    if ranks == [0, 1]:
        return ["chosen response", "rejected response"]
    return [f"response of rank {rank}" for rank in ranks]
