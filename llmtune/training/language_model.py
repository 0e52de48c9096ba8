"""Cross entropy of a language model, with its measures: perplexity and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmtune.samples.blocks import JoinedDataset
from llmtune.samples.prepare import Prepared
from llmtune.samples.streaming import StreamedSamples
from llmtune.templates.documents import DocumentTemplate
from llmtune.training.cross_entropy import CrossEntropy
from llmtune.training.objective import Phase
from llmtune.types import IGNORE_INDEX

HIGHEST = 700.0
"""A mean loss whose exponential is still a floating-point number."""


@dataclass(frozen=True)
class TextSize:
    """Trainable tokens of some samples, and the bytes of UTF-8 text that they are."""

    tokens: int
    num_bytes: int

    def bits_per_byte(self, loss: float) -> float | None:
        """Return the mean `loss`, in nats per token, in bits per byte of text; None without text."""
        return loss * self.tokens / self.num_bytes / math.log(2) if self.num_bytes else None


def text_size(items: Any, template: Any) -> TextSize:
    """Return the size of what a token store, or packs or blocks of it, trains or evaluates."""
    report = items.report
    tokens, num_bytes = report.num_trainable, report.num_bytes
    if isinstance(items, JoinedDataset) and isinstance(template, DocumentTemplate):
        first = items.store[0]  # the only token of the whole sequence without context
        if first["labels"][0] != IGNORE_INDEX:
            tokens, num_bytes = tokens - 1, num_bytes - template.first_bytes(int(first["input_ids"][0]))
    return TextSize(tokens, num_bytes)


class LanguageModelLoss(CrossEntropy):
    """Cross entropy that is also given as perplexity and in bits per byte of text.

    Bits per byte compares models with different vocabularies, which perplexity per token does not.
    """

    sizes: Mapping[Phase, TextSize]

    @classmethod
    def of(cls, model: Any, samples: Prepared) -> LanguageModelLoss:
        found = super().of(model, samples)
        assert isinstance(found, LanguageModelLoss)
        train = samples.train_tokens if isinstance(samples.train_set, StreamedSamples) else samples.train_set
        found.sizes = {"train": text_size(train, samples.template)}
        if samples.validation_set is not None:
            found.sizes["eval"] = text_size(samples.validation_set, samples.template)
        return found

    def derived(self, phase: Phase, loss: float) -> dict[str, float]:
        found = {"perplexity": math.exp(min(loss, HIGHEST))}
        size = self.sizes.get(phase)
        bits = None if size is None else size.bits_per_byte(loss)
        return found if bits is None else found | {"bits_per_byte": bits}
