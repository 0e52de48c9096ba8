"""Balance of `--device_map auto` over devices."""

from __future__ import annotations

from typing import Any

from transformers.integrations.accelerate import get_balanced_memory, infer_auto_device_map

__all__ = ["fullest_share"]

ENOUGH = 2**60


def fullest_share(model: Any, devices: int) -> float:
    """Return the fraction of the weights on the fullest of `devices`, by transformers' device map.

    Args:
        model: A transformers model without adapters, on the meta device.
    """
    if devices == 1:
        return 1.0
    whole = getattr(model, "_no_split_modules", None)
    memory = get_balanced_memory(model, dict.fromkeys(range(devices), ENOUGH), whole)
    placed = dict.fromkeys(range(devices), 0)
    for name, device in infer_auto_device_map(model, memory, whole).items():
        placed[device] += _size(model.get_submodule(name) if name else model)
    return max(placed.values()) / sum(placed.values())


def _size(module: Any) -> int:
    return sum(one.numel() * one.element_size() for one in module.parameters())
