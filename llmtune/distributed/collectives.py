"""What the processes of a run say to one another. With one process alone, nothing."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

__all__ = ["any_process", "sum_over_processes", "told_by_first", "wait_for_all"]


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def any_process(holds: bool) -> bool:
    """Whether it holds in any process; each has to ask."""
    return sum_over_processes([float(holds)])[0] > 0


def sum_over_processes(values: list[float]) -> list[float]:
    """The sum of each value; every process gives as many, and gets the same."""
    if not _together():
        return values
    sums = torch.tensor(values, dtype=torch.float64, device=_device())
    dist.all_reduce(sums)
    return list(sums.tolist())


def told_by_first(value: Any) -> Any:
    """What the first process gives, in all of them. It must be picklable."""
    if not _together():
        return value
    told = [value]
    dist.broadcast_object_list(told, src=0, device=_device())
    return told[0]


def wait_for_all() -> None:
    if _together():
        dist.barrier()
