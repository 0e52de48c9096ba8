"""Memory of optimizer states, by transformers' optimizer names. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["DEFAULT_OPTIMIZER", "state_bytes", "step_bytes"]

DEFAULT_OPTIMIZER = "adamw_torch_fused"
"""Default of `--optim` on GPUs. The CPU default keeps the same states."""

_BLOCK = 256
"""Block size of an 8-bit state: numbers per fp32 scale, in bitsandbytes and torchao."""

_SMALL = 4096
"""Tensors below this size keep fp32 states in 8-bit optimizers of bitsandbytes and torchao."""


def state_bytes(name: str, tensors: Iterable[tuple[Sequence[int], int, bool]], on_gpu: bool = True) -> int:
    """Return the bytes of the optimizer states after the first step.

    Args:
        name: `--optim`, one of transformers' OptimizerNames.
        tensors: Shape, bytes per number, and whether it is an embedding, which bitsandbytes keeps in fp32.
        on_gpu: Paged optimizers page on GPUs only: their states then count as CPU memory.
    """
    return sum(_of_tensor(name, list(shape), size, embedding, on_gpu) for shape, size, embedding in tensors)


def step_bytes(name: str, gradients: int, on_gpu: bool) -> int:
    """Return the temporaries of a step: torch's AdamW on a GPU processes all tensors at once."""
    return gradients if on_gpu and name in ("adamw_torch", "adamax", "rmsprop", "adagrad") else 0


def _of_tensor(name: str, shape: list[int], size: int, embedding: bool, on_gpu: bool) -> int:
    count = 1
    for length in shape:
        count *= length
    if "paged" in name and on_gpu:
        return 0
    states = 1 if any(part in name for part in ("lion", "rmsprop", "adagrad")) else 2
    if name == "sgd":
        return 0
    if "adafactor" in name:
        return 4 * (sum(shape[-2:]) if len(shape) >= 2 else count)
    if "4bit" in name:
        return states * (count // 2 + count * 4 // 128) if count >= _SMALL else states * count * 4
    if "8bit" in name or name == "adamw_bnb_8bit":
        small = count < _SMALL or (embedding and "torch" not in name)
        return states * count * 4 if small else states * (count + count * 4 // _BLOCK)
    return states * count * size
