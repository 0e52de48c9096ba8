"""The two passes of `decode`: prompts into a cache, and one more token of each row."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from llmtune.inference.row_cache import RowCache

PROBE_LENGTH = 6
TOLERANCE = 0.05
"""Of the largest logit. Rounding in bf16 is below; a wrong position, or padding attended to, is far above."""


class Forward:
    """A causal language model, called for the last position's logits alone, if it can be."""

    def __init__(self, model: Any, pad_token_id: int) -> None:
        self.model = model
        self.pad_token_id = pad_token_id
        self.inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        takes = inspect.signature(self.inner.forward).parameters
        self._options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self._options["use_cache"] = True

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, DynamicCache]:
        """Return the logits behind the prompts, [B, V], and their left-padded KV."""
        batch = {name: value.to(self.model.device) for name, value in pad_left(prompts, self.pad_token_id).items()}
        mask = batch["attention_mask"]
        is_padded = len({len(prompt) for prompt in prompts}) > 1
        cache = DynamicCache(config=self.model.config)
        logits = self.model(
            input_ids=batch["input_ids"],
            attention_mask=mask if is_padded else None,  # without a mask there are faster kernels
            position_ids=(mask.cumsum(-1) - 1).clamp_(min=0),
            past_key_values=cache,
            **self._options,
        ).logits
        return logits[:, -1], cache

    def step(self, tokens: Sequence[int], cache: RowCache) -> Tensor:
        """Return the logits behind the rows' next tokens, [R, V]; their KV is added to the cache."""
        device = self.model.device
        given = torch.tensor([tokens, cache.lengths]).to(device)
        mask = None
        if cache.is_padded:
            columns = torch.arange(cache.width + 1, device=device)
            mask = (columns >= (cache.width - given[1])[:, None]).long()
        logits = self.model(
            input_ids=given[0][:, None],
            attention_mask=mask,
            position_ids=given[1][:, None],
            past_key_values=cache,
            **self._options,
        ).logits
        cache.advance()
        return logits[:, -1]


def has_plain_cache(forward: Forward) -> bool:
    """Whether the KV of a model is keys and values of all positions, so that rows can be joined; tried on a few ids.

    A sequence, and one without its first ids, are continued in one batch, then the shorter one alone, without the
    padding that it was prefilled with, and compared with whole passes.
    """
    model = forward.model
    if getattr(model.config, "is_encoder_decoder", False):
        return False
    try:
        vocabulary = model.config.get_text_config().vocab_size
        whole = [place % vocabulary for place in range(1, PROBE_LENGTH + 1)]
        sequences = [whole, whole[2:]]
        _, prompts = forward.prefill([ids[:-2] for ids in sequences])
        if not all(type(layer) is DynamicLayer and layer.is_initialized for layer in prompts.layers):
            return False
        cache = RowCache(len(sequences), len(prompts.layers))
        for place, ids in enumerate(sequences):
            cache.join(prompts, place, len(ids) - 2, 1)
        found = forward.step([ids[-2] for ids in sequences], cache)
        cache.leave([0])
        found = torch.cat([found, forward.step([sequences[1][-1]], cache)]).float()
        wholes = [sequences[0][:-1], sequences[1][:-1], sequences[1]]
        wanted = torch.cat([forward.prefill([ids])[0] for ids in wholes]).float()
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError):
        return False
    return bool((found - wanted).abs().max() <= TOLERANCE * wanted.abs().max().clamp(min=1e-6))


def pad_left(prompts: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Return left-padded prompts: `input_ids` and `attention_mask`, [B, T]."""
    length = max(map(len, prompts))
    ids = [[pad_token_id] * (length - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
