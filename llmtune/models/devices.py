"""Which GPUs a process has, and a model's layers spread over several of them."""

from __future__ import annotations

import platform
from typing import Any

from llmtune.distributed.ranks import local_rank, local_world_size
from llmtune.errors import UsageError
from llmtune.utils.logging import get_logger

__all__ = ["device_name", "first_device", "memory_limits", "own_gpus", "spread_options"]

MARGIN = 0.9
"""Share of a GPU's free memory that weights may take: activations come on top."""


def device_name() -> str:
    """The GPU of this process, or its CPU and threads."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def own_gpus(num_gpus: int, rank: int, num_processes: int) -> list[int]:
    """The GPUs of one process of this machine: its own number first, then every `num_processes`-th.

    Raises:
        UsageError: There are more processes than GPUs.
    """
    if num_processes > num_gpus:
        raise UsageError(f"{num_processes} processes need as many GPUs, and {num_gpus} can be seen: lower --nproc.")
    return list(range(rank, num_gpus, num_processes))


def first_device() -> str:
    """Where a process's model lies, or begins."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{own_gpus(torch.cuda.device_count(), local_rank(), local_world_size())[0]}"


def memory_limits(free: dict[int, int]) -> dict[int, int]:
    """Bytes of weights that each GPU may take. `free`: bytes free of each of a process's own."""
    return {gpu: int(size * MARGIN) for gpu, size in free.items()}


def spread_options(device_map: str | None) -> dict[str, Any]:
    """What `from_pretrained` is told for `--device_map`; nothing where one device holds the model.

    A process's own GPUs are the only places: what lies on the CPU or a disk cannot be trained. Where there is one
    device, that is where the model goes, as several guides pass --device_map auto everywhere.
    """
    if device_map is None:
        return {}
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    own = own_gpus(num_gpus, local_rank(), local_world_size()) if num_gpus else []
    if len(own) < 2:
        place = f"cuda:{own[0]}" if own else "the CPU"
        get_logger().info(f"--device_map {device_map}: this process has one device, so all layers go to {place}.")
        return {}
    free = {gpu: torch.cuda.mem_get_info(gpu)[0] for gpu in own}
    return {"device_map": device_map, "max_memory": memory_limits(free)}
