"""Sampling by transformers' `generate`, for models whose cache has rows that cannot be moved.

The choices are those of `decode`: the same uniform numbers, so the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from llmtune.inference.decode_forward import pad_left
from llmtune.inference.decode_rows import Row, choose
from llmtune.inference.draws import Draw


def decode_by_generate(
    model: Any, rows: Sequence[Row], how: Draw, *, max_rows: int, pad_token_id: int, ended: Callable[[int], Any]
) -> None:
    """Decode the rows to their ends, in batches of `max_rows`: each waits for its longest response.

    Args:
        ended: Receives the number of rows that have ended, as they do.
    """
    order = sorted(rows, key=lambda row: -len(row.prompt_ids))  # little padding
    with _no_settings(model):
        for start in range(0, len(order), max_rows):
            batch = order[start : start + max_rows]
            choice = _Choice(batch, how, ended)
            inputs = pad_left([row.prompt_ids for row in batch], pad_token_id)
            model.generate(
                **{name: value.to(model.device) for name, value in inputs.items()},
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=max(row.max_tokens for row in batch),
                    pad_token_id=pad_token_id,
                ),
                logits_processor=LogitsProcessorList([choice]),
                stopping_criteria=StoppingCriteriaList([_Ended(choice)]),
            )


@contextmanager
def _no_settings(model: Any) -> Iterator[None]:
    """Hide the settings of the model's generation_config.json, which would change the distribution."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = kept


class _Choice(LogitsProcessor):
    """Logits processor that chooses each row's token, and leaves `generate` this one alone."""

    def __init__(self, rows: Sequence[Row], how: Draw, ended: Callable[[int], Any]) -> None:
        self.rows = rows
        self.how = how
        self.ended = ended
        self.left = list(range(len(rows)))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[B, T], [B, V] -> [B, V]."""
        left = torch.tensor(self.left, device=scores.device)
        rows = [self.rows[place] for place in self.left]
        ends = choose(rows, scores[left], self.how)
        tokens = torch.tensor([row.response.ids[-1] for row in rows], device=scores.device)
        found = torch.full_like(scores, -torch.inf)
        found[:, 0] = 0.0
        found[left, tokens] = 1.0
        self.left = [place for place, end in zip(self.left, ends, strict=True) if not end]
        self.ended(sum(ends))
        return found


class _Ended(StoppingCriteria):
    def __init__(self, choice: _Choice) -> None:
        self.choice = choice

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        ended = torch.ones(len(input_ids), dtype=torch.bool)
        ended[self.choice.left] = False
        return ended.to(input_ids.device)
