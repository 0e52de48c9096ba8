"""The scorer: a reward model with its template, which gives each response one number, the score of training."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from llmtune.models.score import choose_padding, install_scores
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.comparisons import EncodedComparison, encode_comparisons
from llmtune.types import Comparison


class Scorer:
    """A reward model with its template.

    Args:
        model: A causal class with a head of one number, or a PEFT model of one.
        template: Bound to the model's tokenizer, whose padding token is replaced if it ends responses.
    """

    def __init__(self, model: Any, template: ChatTemplate) -> None:
        self.model, self.template = model.eval(), template
        self._padding = choose_padding(template.tokenizer, set(template.stop_token_ids))
        model.config.pad_token_id = self._padding
        install_scores(model)
        self._busy = threading.Lock()

    def encode(self, rows: Sequence[Comparison]) -> list[EncodedComparison]:
        """Return the ids of prompts and responses, up to each response's stop token; exactly those of training."""
        return encode_comparisons(rows, self.template, self.template.max_length)

    def scores_of(self, encoded: Sequence[EncodedComparison], batch_size: int = 16) -> list[list[float]]:
        """Return the scores of the responses of each comparison, in their order."""
        sequences = [row.prompt + one.input_ids for row in encoded for one in row.responses]
        found = iter(self.scores(sequences, batch_size))
        return [[next(found) for _ in row.responses] for row in encoded]

    def scores(self, sequences: Sequence[Sequence[int]], batch_size: int = 16) -> list[float]:
        """Return the score at the last token of each sequence of ids, computed in batches of similar length."""
        found = [0.0] * len(sequences)
        for batch in by_length(sequences, batch_size):
            for index, score in zip(batch, self._batch([sequences[index] for index in batch]), strict=True):
                found[index] = score
        return found

    def _batch(self, rows: Sequence[Sequence[int]]) -> list[float]:
        length = max(map(len, rows))
        ids = torch.tensor([[*row, *[self._padding] * (length - len(row))] for row in rows])
        sizes = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(length) < sizes[:, None]).long()
        places = torch.arange(len(rows)) * length + sizes - 1
        device = self.model.device
        with self._busy, torch.inference_mode():
            made = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), score_places=places)
        return [float(score) for score in made.scores.tolist()]


def by_length(sequences: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Yield indices in batches, the longest first, so that a lack of memory shows at once."""
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    yield from (order[start : start + batch_size] for start in range(0, len(order), batch_size))
