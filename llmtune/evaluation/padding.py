"""Losses without padding, where the model's attention keeps the samples of a batch apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from llmtune.inference.engine import Engine
from llmtune.models.packed_attention import VARLEN, register_varlen, takes_one_sequence, why_not_apart
from llmtune.samples.collate import PackingCollator, PaddingCollator


@contextlib.contextmanager
def batches_without_padding(engine: Engine, longest: int) -> Iterator[PackingCollator | PaddingCollator]:
    """Yield what makes batches of samples: one sequence each, or padded rows. Attention is as before after the block.

    Args:
        longest: Tokens of the longest sample.
    """
    model, padding = engine.model, engine.tokenizer.pad_token_id
    before = getattr(model.config, "_attn_implementation", None)
    is_flat = engine.template.media is None and _separates(model, longest)
    try:
        if is_flat:
            yield PackingCollator(padding, flat=True, with_segments=True)
        else:
            yield PaddingCollator(padding, engine.template.media)
    finally:
        if getattr(model.config, "_attn_implementation", None) != before:
            model.set_attn_implementation(before)


def _separates(model: Any, longest: int) -> bool:
    """Let a model attend to each sample of a batch by itself; False where it cannot."""
    if model.device.type != "cpu" and model.dtype is torch.float32:
        return False  # kernels of GPUs take half precision only
    try:
        if not takes_one_sequence(model):
            register_varlen()
            model.set_attn_implementation(VARLEN)
        return takes_one_sequence(model) and not why_not_apart(model, longest=longest)
    except (AttributeError, ValueError, RuntimeError):
        return False
