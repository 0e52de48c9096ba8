"""Attention of packed sequences: torch's variable-length kernel, and the proof that samples stay apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llmtune.errors import ModelError, one_line
from llmtune.models.heads import inner_model, outputs_per_token
from llmtune.utils.accelerator import accelerator

VARLEN = "varlen"
CANNOT = ("softcap", "s_aux", "position_bias")


def register_varlen() -> None:
    """Register `varlen` with transformers. A second call does nothing."""
    if VARLEN in ALL_ATTENTION_FUNCTIONS:
        return  # perhaps in a form that shares sequences out, see `models.sequence_parallel`
    ALL_ATTENTION_FUNCTIONS.register(VARLEN, _varlen_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(VARLEN, _varlen_mask)


def segments(position_ids: Tensor) -> dict[str, Any]:
    """Return the bounds of packed sequences, as arguments of attention; computed once per batch.

    Args:
        position_ids: [1, T], 0 at the first token of each of N rows.

    Returns:
        `cu_seq_lens_q` and `_k`, the first token of each row and the end of the last, int32 [N + 1]; `max_length_q`
        and `_k`, tokens of the longest row.
    """
    starts = (position_ids[0] == 0).nonzero()[:, 0]
    edges = functional.pad(starts, (0, 1), value=position_ids.shape[1]).to(torch.int32)
    longest = int(edges.diff().max())
    return {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": longest, "max_length_k": longest}


def branches(parts: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return the bounds of sequences that read keys of one before them, as arguments of `varlen` attention.

    Args:
        parts: Of each sequence, in order: its tokens; and how many keys it reads of the last sequence that reads none.

    Returns:
        `cu_seq_lens_q` and `max_length_q` as `segments` does; `cu_seq_lens_k` and `max_length_k`, the same of the keys
        that each sequence reads; `key_index`, [K], the positions of these keys, one sequence after the other.
    """
    keys: list[Tensor] = []
    start = trunk = 0
    for size, shared in parts:
        if not shared:
            trunk = start
        keys.append(torch.cat([torch.arange(trunk, trunk + shared), torch.arange(start, start + size)]))
        start += size
    sizes, reads = torch.tensor([size for size, _ in parts]), torch.tensor([len(one) for one in keys])
    return {
        "cu_seq_lens_q": functional.pad(sizes.cumsum(0), (1, 0)).to(torch.int32),
        "cu_seq_lens_k": functional.pad(reads.cumsum(0), (1, 0)).to(torch.int32),
        "max_length_q": int(sizes.max()),
        "max_length_k": int(reads.max()),
        "key_index": torch.cat(keys),
    }


def _varlen_mask(*, attention_mask: Tensor | None = None, allow_is_causal_skip: bool = True, **options: Any) -> Any:
    """SDPA's mask; for packed rows, which transformers has found by their positions, an empty sign instead."""
    whole = options["q_length"] == options["kv_length"]
    if attention_mask is None and whole and not allow_is_causal_skip:
        return torch.empty((1, 1, 1, 0), dtype=torch.bool, device=options["device"])
    return sdpa_mask(attention_mask=attention_mask, allow_is_causal_skip=allow_is_causal_skip, **options)


def _varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    key_index: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention interface of transformers: query [B, H, T, D], key and value [B, Hkv, T, D] to [B, T, H, D].

    `key_index`: see `branches`; without it, each sequence reads its own keys.
    """
    found = [name for name in CANNOT if options.get(name) is not None]
    if found or dropout:
        raise ValueError(f"varlen attention has no {', '.join(found) or 'dropout'}")
    is_packed = attention_mask is not None and attention_mask.shape[-1] == 0
    if cu_seq_lens_q is None or cu_seq_lens_k is None or max_length_q is None or max_length_k is None:
        if is_packed:
            raise ValueError("the class does not pass sequence bounds to its attention")
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, 0.0, scaling, **options
        )
        return plain
    if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise ValueError("varlen attention takes one packed sequence, without a cache")
    parts = (query[0], key[0], value[0])
    if key_index is not None:
        parts = (query[0], key[0].index_select(1, key_index), value[0].index_select(1, key_index))
    bounds = _Bounds(cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
    dtype = _half(query)
    if query.is_cuda and dtype is not None:
        out = _on_kernel(parts, dtype, bounds, scaling, sliding_window)
    else:
        out = _row_by_row(parts, bounds, scaling, sliding_window)
    return out.to(query.dtype)[None], None


@dataclass(frozen=True)
class _Bounds:
    """Where the queries of each sequence begin and end, and the keys that it reads; the longest of both."""

    queries: Tensor
    keys: Tensor
    longest_query: int
    longest_key: int


def _half(query: Tensor) -> torch.dtype | None:
    """The dtype that the kernel computes in; None where nothing says that half precision is wanted."""
    if query.dtype in (torch.bfloat16, torch.float16):
        return query.dtype
    device = query.device.type  # norms of queries and keys may be kept in fp32, under autocast
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _on_kernel(
    parts: tuple[Tensor, Tensor, Tensor],
    dtype: torch.dtype,
    bounds: _Bounds,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """[H, T, D] each -> [T, H, D]."""
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (part.transpose(0, 1).to(dtype) for part in parts)
    width = value.shape[-1]
    if width != query.shape[-1]:  # the kernel wants one width; DeepSeek's values are narrower
        value = functional.pad(value, (0, query.shape[-1] - width))
    out = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        bounds.queries,
        bounds.keys,
        bounds.longest_query,
        bounds.longest_key,
        scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)
    return out[..., :width]


def _row_by_row(
    parts: tuple[Tensor, Tensor, Tensor], bounds: _Bounds, scaling: float | None, window: int | None
) -> Tensor:
    """The same without the kernel: one SDPA call per sequence. [H, T, D] each -> [T, H, D]."""
    found = []
    for (start, end), (first, last) in zip(
        pairwise(bounds.queries.tolist()), pairwise(bounds.keys.tolist()), strict=True
    ):
        query = parts[0][None, :, start:end]
        key, value = (part[None, :, first:last] for part in parts[1:])
        shared, mask = (last - first) - (end - start), None
        if shared or (window is not None and window < last - first):
            mask = torch.ones(end - start, last - first, dtype=torch.bool, device=query.device).tril(shared)
            mask = mask if window is None else mask.triu(shared + 1 - window)
        row = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        found.append(row[0].transpose(0, 1))
    return torch.cat(found)


# Check that a model attends to packed sequences separately: not every class does


TOLERANCES = {torch.float32: 1e-3}
"""Relative to the largest logit. Sequences that attend to each other differ by 0.3 to 1.6 in small random models."""
HALF_TOLERANCE = 5e-2


def check_isolation(model: Any, flag: str, *, longest: int = 0) -> None:
    """Compare the logits of two short packed sequences with those of each alone.

    Args:
        longest: Tokens of the longest sample of the run.

    Raises:
        ModelError: See `why_not_apart`; names the class, and what to do without `flag`.
    """
    limit = rotation_limit(inner_model(model).config) if hasattr(inner_model(model), "config") else None
    if reason := why_not_apart(model, longest=longest):
        advice = f"Train it with {flag} false; --group_by_length true saves much of the padding."
        if limit is not None and longest > limit:
            advice = f"Use --max_length {limit}, or {flag} false with --batch_size 1."
        raise ModelError(f"{reason}. {advice}")


def why_not_apart(model: Any, *, longest: int = 0) -> str:
    """Why packed sequences would affect each other; "" if they stay apart.

    Some classes ignore `position_ids` in their masks (Bloom, GPT-OSS), custom code may not take them, and some rescale
    RoPE by the longest row.
    """
    inner = inner_model(model)
    name = type(inner).__name__
    limit = rotation_limit(inner.config) if hasattr(inner, "config") else None
    if limit is not None and longest > limit:
        return (
            f"{name} rescales RoPE of all packed sequences once the longest exceeds {limit:,} tokens, and a sample "
            f"here has {longest:,}"
        )
    was_training = model.training
    model.eval()
    try:
        is_apart = keeps_rows_apart(model)
    except (TypeError, ValueError) as err:
        return f"{name} does not take position_ids of packed sequences ({one_line(err, 120)})"
    finally:
        model.train(was_training)
    return "" if is_apart else f"{name} does not separate packed sequences: each attends to those before it"


@torch.no_grad()
def shares_prompts(model: Any) -> bool:
    """Whether the logits of two responses that share a prompt's keys equal those of each behind the prompt, alone.

    Raises the model's errors.
    """
    prompt, *answers = (torch.arange(start, start + size) for start, size in ((1, 6), (9, 4), (15, 5)))
    sizes = [len(prompt) - 1, *(1 + len(answer) for answer in answers)]
    ids = torch.cat([prompt[:-1], *(torch.cat([prompt[-1:], answer]) for answer in answers)])
    positions = torch.cat([torch.arange(sizes[0]), *(sizes[0] + torch.arange(size) for size in sizes[1:])])
    bounds = branches([(sizes[0], 0), *((size, sizes[0]) for size in sizes[1:])])
    device = model.device
    inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in bounds.items()}
    with half_on_kernels(model):
        together = outputs_per_token(
            model, input_ids=ids[None].to(device), position_ids=positions[None].to(device), use_cache=False, **inputs
        )[0]
        alone = [
            outputs_per_token(model, input_ids=torch.cat([prompt, answer])[None].to(device), use_cache=False)[0]
            for answer in answers
        ]
    return alike(together[sizes[0] :], torch.cat([one[sizes[0] :] for one in alone]))


@contextlib.contextmanager
def half_on_kernels(model: Any) -> Iterator[None]:
    """Kernels of that kind compute in half precision, and weights that are trained whole lie in fp32."""
    kind = model.device.type
    casts = takes_one_sequence(model) and kind == "cuda" and model.dtype is torch.float32
    half = torch.float16 if kind == "cuda" and not accelerator().has_bf16 else torch.bfloat16
    with torch.autocast(kind, dtype=half, enabled=casts):
        yield


def alike(ours: Tensor, theirs: Tensor) -> bool:
    scale = theirs.float().abs().max().clamp(min=1e-6)
    gap = (ours.float() - theirs.float()).abs().max() / scale
    return bool(gap < TOLERANCES.get(theirs.dtype, HALF_TOLERANCE))


@torch.no_grad()
def keeps_rows_apart(model: Any) -> bool:
    """Whether the logits of two short packed sequences equal those of each alone. Raises the model's errors."""
    rows = [torch.arange(1, 9, device=model.device)[None], torch.arange(9, 16, device=model.device)[None]]
    positions = torch.cat([torch.arange(row.shape[1], device=model.device) for row in rows])[None]
    bounds = segments(positions) if takes_one_sequence(model) else {}
    with half_on_kernels(model):
        alone = torch.cat([outputs_per_token(model, input_ids=row, use_cache=False) for row in rows], 1)
        packed = {"input_ids": torch.cat(rows, 1), "position_ids": positions, "use_cache": False}
        together = outputs_per_token(model, **packed, **bounds)
    return alike(together, alone)


def takes_one_sequence(model: Any) -> bool:
    """Whether the model's attention takes a batch as one packed sequence with its bounds."""
    name = str(getattr(getattr(model, "config", None), "_attn_implementation", ""))
    return name == VARLEN or "flash" in name


def rotation_limit(config: Any) -> int | None:
    """Tokens up to which rotary positions do not depend on the longest row, where they ever do."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [kind for kind in rope.values() if isinstance(kind, dict)]
    limits = [
        int(kind.get("original_max_position_embeddings") or text.max_position_embeddings)
        for kind in kinds
        if kind.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=None)
