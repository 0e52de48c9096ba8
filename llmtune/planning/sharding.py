"""How many devices share what. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from llmtune.distributed.deepspeed import deepspeed_file, read_deepspeed, zero_stage
from llmtune.distributed.ranks import local_world_size

__all__ = ["Sharding", "sharding_of"]


@dataclass(frozen=True, slots=True)
class Sharding:
    """Processes of a run, and among how many of them each part is divided; 1: each holds it whole.

    `offloads_optimizer`, `offloads_weights`: what lies in the memory of the machine instead. `spread`: devices over
    which `--device_map` spreads the layers of one process.
    """

    ranks: int = 1
    weights: int = 1
    gradients: int = 1
    optimizer: int = 1
    offloads_optimizer: bool = False
    offloads_weights: bool = False
    spread: int = 1


def sharding_of(args: Any, gpus: int = 0) -> Sharding:
    """What the flags divide: `--nproc`, `--fsdp`, `--deepspeed_config_path`, `--device_map`; none is as not given.

    Args:
        gpus: Of a machine, for all of its processes; --device_map has no effect without.
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
    """Stage, and whether the optimizer and the weights are kept in the machine's memory, as the file says."""
    file = deepspeed_file(path)
    if file is None:
        return 0, False, False
    config = read_deepspeed(file).get("zero_optimization", {})
    offloaded = [
        str((config.get(name) or {}).get("device", "none")) != "none" for name in ("offload_optimizer", "offload_param")
    ]
    return zero_stage(path), *offloaded  # type: ignore[return-value]
