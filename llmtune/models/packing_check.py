"""Check that a model attends to packed sequences separately: not every class does."""

from __future__ import annotations

from typing import Any

import torch

from llmtune.errors import ModelError
from llmtune.models.varlen import VARLEN, segments

__all__ = ["check_isolation", "keeps_rows_apart", "takes_one_sequence"]

TOLERANCES = {torch.float32: 1e-3}
"""Relative to the largest logit. Sequences that attend to each other differ by 0.3 to 1.6 in small random models."""
HALF_TOLERANCE = 5e-2


def check_isolation(model: Any, flag: str, *, longest: int = 0) -> None:
    """Compare the logits of two short packed sequences with those of each alone.

    Some classes ignore `position_ids` in their masks (Bloom, GPT-OSS), and custom code may not take them.

    Args:
        longest: Tokens of the longest sample of the run.

    Raises:
        ModelError: They differ, or the model takes no `position_ids`, or the longest row would change how the others
            are rotated; names the class, and what to do without `flag`.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = type(inner).__name__
    limit = _rotation_limit(inner.config) if hasattr(inner, "config") else None
    if limit is not None and longest > limit:
        raise ModelError(
            f"{name} rescales RoPE of all packed sequences once the longest exceeds {limit:,} tokens, and a sample "
            f"here has {longest:,}. Use --max_length {limit}, or {flag} false with --batch_size 1."
        )
    was_training = model.training
    model.eval()
    try:
        is_apart = keeps_rows_apart(model)
    except (TypeError, ValueError) as err:
        raise ModelError(f"{name} does not take position_ids of packed sequences ({err}). {_next(flag)}") from err
    finally:
        model.train(was_training)
    if not is_apart:
        raise ModelError(f"{name} does not separate packed sequences: each attends to those before it. {_next(flag)}")


@torch.no_grad()
def keeps_rows_apart(model: Any) -> bool:
    """Whether the logits of two short packed sequences equal those of each alone. Raises the model's errors."""
    rows = [torch.arange(1, 9, device=model.device)[None], torch.arange(9, 16, device=model.device)[None]]
    positions = torch.cat([torch.arange(row.shape[1], device=model.device) for row in rows])[None]
    bounds = segments(positions) if takes_one_sequence(model) else {}
    # Kernels of that kind compute in half precision, and weights that are trained whole lie in fp32.
    kind = model.device.type
    casts = bool(bounds) and kind == "cuda" and model.dtype is torch.float32
    half = torch.float16 if kind == "cuda" and not torch.cuda.is_bf16_supported() else torch.bfloat16
    with torch.autocast(kind, dtype=half, enabled=casts):
        alone = torch.cat([model(input_ids=row, use_cache=False).logits for row in rows], 1)
        together = model(input_ids=torch.cat(rows, 1), position_ids=positions, use_cache=False, **bounds).logits
    scale = alone.float().abs().max().clamp(min=1e-6)
    gap = (together.float() - alone.float()).abs().max() / scale
    return bool(gap < TOLERANCES.get(alone.dtype, HALF_TOLERANCE))


def takes_one_sequence(model: Any) -> bool:
    """Whether the model's attention takes a batch as one packed sequence with its bounds."""
    name = str(getattr(getattr(model, "config", None), "_attn_implementation", ""))
    return name == VARLEN or "flash" in name


def _rotation_limit(config: Any) -> int | None:
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


def _next(flag: str) -> str:
    return f"Train it with {flag} false; --group_by_length true saves much of the padding."
