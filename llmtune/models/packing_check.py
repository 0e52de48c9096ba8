"""Whether a model keeps the rows of a pack apart, tried on it before training: not every class does."""

from __future__ import annotations

from typing import Any

import torch

from llmtune.errors import ModelError
from llmtune.models.varlen import VARLEN, segments

__all__ = ["check_isolation", "keeps_rows_apart", "takes_one_sequence"]

TOLERANCES = {torch.float32: 1e-3}
"""Of the largest logit. Rows that see each other differ by 0.3 to 1.6 in small random models of every class."""
HALF_TOLERANCE = 5e-2


def check_isolation(model: Any, flag: str, *, longest: int = 0) -> None:
    """Compare the logits of two short rows in one sequence with those of each alone.

    Some classes ignore `position_ids` when they make their masks (Bloom, GPT-OSS), and code of a checkpoint's own may
    not take them.

    Args:
        longest: Tokens of the longest row that will come.

    Raises:
        ModelError: They differ, or the model takes no `position_ids`, or the longest row would change how the others
            are rotated; names the class, and what to do without `flag`.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = type(inner).__name__
    limit = _rotation_limit(inner.config) if hasattr(inner, "config") else None
    if limit is not None and longest > limit:
        raise ModelError(
            f"{name} rotates every row of a sequence by its longest, once that exceeds {limit:,} tokens, and a row "
            f"here has {longest:,}. Give --max_length {limit}, or {flag} false with --batch_size 1."
        )
    was_training = model.training
    model.eval()
    try:
        is_apart = keeps_rows_apart(model)
    except (TypeError, ValueError) as err:
        raise ModelError(f"{name} does not take rows with positions of their own ({err}). {_next(flag)}") from err
    finally:
        model.train(was_training)
    if not is_apart:
        raise ModelError(f"{name} does not keep rows of a sequence apart: each would see those before. {_next(flag)}")


@torch.no_grad()
def keeps_rows_apart(model: Any) -> bool:
    """Whether the logits of two short rows in one sequence are those of each alone. Raises what the model raises."""
    rows = [torch.arange(1, 9, device=model.device)[None], torch.arange(9, 16, device=model.device)[None]]
    positions = torch.cat([torch.arange(row.shape[1], device=model.device) for row in rows])[None]
    told = segments(positions) if takes_one_sequence(model) else {}
    # Kernels of that kind compute in half precision, and weights that are trained whole lie in fp32.
    kind = model.device.type
    casts = bool(told) and kind == "cuda" and model.dtype is torch.float32
    half = torch.float16 if kind == "cuda" and not torch.cuda.is_bf16_supported() else torch.bfloat16
    with torch.autocast(kind, dtype=half, enabled=casts):
        alone = torch.cat([model(input_ids=row, use_cache=False).logits for row in rows], 1)
        together = model(input_ids=torch.cat(rows, 1), position_ids=positions, use_cache=False, **told).logits
    scale = alone.float().abs().max().clamp(min=1e-6)
    gap = (together.float() - alone.float()).abs().max() / scale
    return bool(gap < TOLERANCES.get(alone.dtype, HALF_TOLERANCE))


def takes_one_sequence(model: Any) -> bool:
    """Whether the model's attention wants all rows of a batch behind one another, and to be told where they begin."""
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
