"""LongLoRA's shifted sparse attention: used in training only.

In training each token attends only to its group of G tokens; in half of the heads the groups are shifted by half a
group, so that information flows between groups. Sequences of up to G tokens, and all in evaluation, have full
attention.
 Source: arXiv 2309.12307, section 3.2; as there, G is a quarter of the length that is trained for.
At both ends of the shifted heads half a group is left over: each is a group of its own, since the two are not
neighbours, and the later one must not be seen by the earlier.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

GROUPS = 4


def group_size(max_length: int) -> int:
    """Return the tokens per group: a quarter of max_length, rounded up to an even number."""
    return -(-max_length // (2 * GROUPS)) * 2


def register_shifted(group: int) -> str:
    """Register the attention with transformers; return its name there."""
    name = f"shifted_{group}"
    ALL_ATTENTION_FUNCTIONS.register(name, partial(_shifted_attention, group))
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, sdpa_mask)
    return name


def _shifted_attention(
    group: int,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention interface of transformers: query [B, H, T, D], key and value [B, Hkv, T, D] to [B, T, H, D].

    The mask is ignored in training: padding is on the right, where no trainable token attends to it.
    """
    length = query.shape[2]
    if not module.training or length <= group or length != key.shape[2]:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **options
        )
        return plain
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise ValueError("shifted attention supports neither softcap nor sinks")
    times = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, times), repeat_kv(value, times)
    half = query.shape[1] // 2
    found = []
    for heads, first in ((slice(0, half), group), (slice(half, None), group // 2)):
        parts = [part[:, heads] for part in (query, key, value)]
        found.append(torch.cat(list(_group_by_group(parts, group, first, dropout, scaling)), 2))
    return torch.cat(found, 1).transpose(1, 2).contiguous(), None


def _group_by_group(
    parts: list[Tensor], group: int, first: int, dropout: float, scaling: float | None
) -> Iterator[Tensor]:
    """Outputs [B, h, t, D] of the first group, of `first` tokens; of all whole ones after it at once; of the rest."""
    length = parts[0].shape[2]
    whole = (length - first) // group * group
    for start, end, size in ((0, first, first), (first, first + whole, group), (first + whole, length, length)):
        if start == end:
            continue
        size = min(size, end - start)
        batch, heads = parts[0].shape[:2]
        count = (end - start) // size
        query, key, value = (
            part[:, :, start:end].reshape(batch, heads, count, size, -1).transpose(1, 2).flatten(0, 1) for part in parts
        )
        out = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True, scale=scaling
        )
        yield out.reshape(batch, count, heads, size, -1).transpose(1, 2).reshape(batch, heads, end - start, -1)
