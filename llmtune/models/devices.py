"""GPUs of each process, and a model's layers spread over several of them."""

from __future__ import annotations

import platform
from typing import Any

from llmtune.distributed.ranks import local_rank, local_world_size
from llmtune.errors import UsageError
from llmtune.utils.logging import get_logger

__all__ = ["device_name", "first_device", "memory_limits", "own_gpus", "spread_options"]

MARGIN = 0.9
"""Fraction of a GPU's free memory for weights; the rest is for activations."""


def device_name() -> str:
    """The GPU of this process, or its CPU and threads."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def own_gpus(num_gpus: int, rank: int, num_processes: int) -> list[int]:
    """Return the GPUs of one process of this machine: its local rank first, then every `num_processes`-th.

    Raises:
        UsageError: There are more processes than GPUs.
    """
    if num_processes > num_gpus:
        raise UsageError(f"{num_processes} processes need as many GPUs, but {num_gpus} are visible: lower --nproc.")
    return list(range(rank, num_gpus, num_processes))


def first_device() -> str:
    """Return the first device of a process's model."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{own_gpus(torch.cuda.device_count(), local_rank(), local_world_size())[0]}"


def memory_limits(free: dict[int, int]) -> dict[int, int]:
    """Return the bytes of weights per GPU. `free`: free bytes of each of the process's GPUs."""
    return {gpu: int(size * MARGIN) for gpu, size in free.items()}


def spread_options(device_map: str | None) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for `--device_map`; empty if one device holds the model.

    Only the process's own GPUs are used: weights on CPU or disk cannot be trained. With one device, the model goes
    there, as several guides pass --device_map auto everywhere.
    """
    if device_map is None:
        return {}
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    own = own_gpus(num_gpus, local_rank(), local_world_size()) if num_gpus else []
    if len(own) < 2:
        place = f"cuda:{own[0]}" if own else "the CPU"
        get_logger().info(f"--device_map {device_map}: this process has one device, {place}, which gets all layers.")
        return {}
    free = {gpu: torch.cuda.mem_get_info(gpu)[0] for gpu in own}
    return {"device_map": device_map, "max_memory": memory_limits(free)}
