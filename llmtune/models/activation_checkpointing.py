"""Activation checkpointing: keep only the input of a layer, or also what is expensive to recompute."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

_ATEN = torch.ops.aten
_MATMULS = {_ATEN.mm: 0, _ATEN.bmm: 0, _ATEN.addmm: 1, _ATEN.baddbmm: 1}
"""Matmuls, and the index of their first factor among the arguments."""

CHEAP = 8
"""A matmul is recomputed if its output is this many times wider than its reduction dimension, as for LoRA's B."""


def checkpointing_kwargs(mode: str) -> dict[str, Any]:
    """Arguments of `torch.utils.checkpoint.checkpoint` for `selective` or `full`.

    Selective keeps the outputs of matmuls and attention and recomputes what costs bandwidth only: norms, activations,
    elementwise products, casts. Source of the idea: Korthikanti et al., arXiv 2205.05198; the mechanism is torch's own.
    """
    if mode == "full":
        return {"use_reentrant": False}
    return {"use_reentrant": False, "context_fn": selective_contexts}


def selective_contexts() -> Any:
    """Return the contexts; a named function, not a lambda, since TrainingArguments are saved with its name."""
    return create_selective_checkpoint_contexts(_policy)


def _policy(_: Any, operation: Any, *args: Any, **__: Any) -> CheckpointPolicy:
    first = _MATMULS.get(operation.overloadpacket)
    if first is None:
        keep = "attention" in operation.name()
    else:
        left, right = args[first], args[first + 1]
        keep = left.shape[-1] * CHEAP >= right.shape[-1]
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
