"""Sharding of a run over devices. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from transformers.integrations.accelerate import get_balanced_memory, infer_auto_device_map

from llmtune.distributed.deepspeed import deepspeed_file, read_deepspeed, zero_stage
from llmtune.distributed.ranks import local_world_size


@dataclass(frozen=True, slots=True)
class Sharding:
    """Ranks of a run, and over how many of them each part is sharded; 1: not sharded.

    `offloads_optimizer`, `offloads_weights`: kept in CPU memory. `spread`: devices over which `--device_map` spreads
    the layers of one process.
    """

    ranks: int = 1
    weights: int = 1
    gradients: int = 1
    optimizer: int = 1
    offloads_optimizer: bool = False
    offloads_weights: bool = False
    spread: int = 1


def sharding_of(args: Any, gpus: int = 0) -> Sharding:
    """Return the sharding by `--nproc`, `--fsdp`, `--deepspeed_config_path` and `--device_map`.

    Args:
        gpus: GPUs per machine, for all of its processes; without, --device_map has no effect.
    """
    nproc = int(getattr(args, "nproc", None) or 1)
    ranks = max(nproc, int(os.environ.get("WORLD_SIZE") or 1))
    if getattr(args, "device_map", None):
        return Sharding(ranks, spread=max(gpus // max(nproc, local_world_size()), 1))
    if getattr(args, "fsdp", None):
        offloads = bool(getattr(args, "fsdp_offload", False))
        return Sharding(ranks, ranks, ranks, ranks, offloads, offloads)
    path = getattr(args, "deepspeed_config_path", None)
    stage, optimizer, weights = _zero(path) if path else (0, False, False)
    return Sharding(
        ranks,
        weights=ranks if stage >= 3 else 1,
        gradients=ranks if stage >= 2 else 1,
        optimizer=ranks if stage >= 1 else 1,
        offloads_optimizer=optimizer,
        offloads_weights=weights,
    )


def _zero(path: str) -> tuple[int, bool, bool]:
    """ZeRO stage of the file, and whether it offloads optimizer and weights."""
    file = deepspeed_file(path)
    if file is None:
        return 0, False, False
    config = read_deepspeed(file).get("zero_optimization", {})
    offloaded = [
        str((config.get(name) or {}).get("device", "none")) != "none" for name in ("offload_optimizer", "offload_param")
    ]
    return zero_stage(path), *offloaded  # type: ignore[return-value]


# Balance of `--device_map auto` over devices


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
