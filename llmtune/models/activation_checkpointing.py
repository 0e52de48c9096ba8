"""What activation checkpointing keeps: nothing of a layer but its input, or also what is dear to compute again."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

__all__ = ["checkpointing_kwargs"]

_ATEN = torch.ops.aten
_PRODUCTS = {_ATEN.mm: 0, _ATEN.bmm: 0, _ATEN.addmm: 1, _ATEN.baddbmm: 1}
"""Matrix products, and where among their arguments the factors begin."""

CHEAP = 8
"""A product is computed again where its result is more than so many times as wide as the sum it takes for a number:
that of the second matrix of a LoRA adapter."""


def checkpointing_kwargs(mode: str) -> dict[str, Any]:
    """Arguments of `torch.utils.checkpoint.checkpoint` for `selective` or `full`.

    Selective keeps the results of matrix products and of attention and computes again what costs bandwidth alone:
    norms, activations, products of elements, casts. Source of the idea: Korthikanti et al., arXiv 2205.05198; the
    mechanism is torch's own.
    """
    if mode == "full":
        return {"use_reentrant": False}
    return {"use_reentrant": False, "context_fn": selective_contexts}


def selective_contexts() -> Any:
    """A function by name, not a lambda: TrainingArguments are written to a file by it."""
    return create_selective_checkpoint_contexts(_policy)


def _policy(_: Any, operation: Any, *args: Any, **__: Any) -> CheckpointPolicy:
    first = _PRODUCTS.get(operation.overloadpacket)
    if first is None:
        keep = "attention" in operation.name()
    else:
        left, right = args[first], args[first + 1]
        keep = left.shape[-1] * CHEAP >= right.shape[-1]
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
