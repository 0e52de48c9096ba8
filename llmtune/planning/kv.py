"""Keys and values that generation keeps: their size, and how many rows fit into memory."""

from __future__ import annotations

from typing import Any

import torch

from llmtune.utils.accelerator import accelerator

CHOICE_BYTES = 16
"""Bytes per row and token of the vocabulary while a token is drawn: logits and shares in fp32, their sums in fp64."""
SHARE = {"cpu": 0.25}
OF_A_GPU = 0.6
"""Share of the free memory that rows may take: prefills and growing caches need the rest."""
MOST_ROWS = {"cpu": 64}
ON_A_GPU = 256
"""Rows at a time: more of them are hardly faster."""
UNKNOWN = 8
"""Rows of a model whose configuration does not say what its cache takes."""


def kv_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of keys and values of one token in all layers."""
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return 2 * int(config.num_hidden_layers) * groups * width * dtype.itemsize


def rows_that_fit(model: Any, length: int) -> int:
    """Return how many rows to generate at a time.

    Args:
        length: Tokens of the longest prompt with its longest response.
    """
    kind = model.device.type
    config = model.config.get_text_config()
    try:
        by_row = length * kv_bytes(config, model.dtype) + CHOICE_BYTES * int(config.vocab_size)
    except (AttributeError, TypeError):
        return UNKNOWN
    usable = accelerator().free_memory() * SHARE.get(kind, OF_A_GPU)
    return max(1, min(int(usable // by_row), MOST_ROWS.get(kind, ON_A_GPU)))
