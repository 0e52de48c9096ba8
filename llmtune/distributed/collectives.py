"""Collectives over the ranks of a run, and how its model is distributed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from llmtune.distributed.fsdp import is_sharded
from llmtune.distributed.ranks import is_first, world_size
from llmtune.utils.accelerator import accelerator, has_float64


def _has_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _device() -> torch.device:
    """Device of tensors that the process group takes."""
    own = accelerator()
    return torch.device(own.current_device() if own.is_gpu and dist.get_backend() == own.backend else "cpu")


def any_rank(holds: bool) -> bool:
    """Whether `holds` is true on any rank. Collective."""
    return sum_over_ranks([float(holds)])[0] > 0


def sum_over_ranks(values: list[float]) -> list[float]:
    """Return the sum of each value over all ranks. Collective: every rank passes as many values."""
    if not _has_ranks():
        return values
    device = _device()
    if not has_float64(device.type):
        return [sum(column) for column in zip(*gather_from_ranks(values), strict=True)]
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return list(sums.tolist())


def broadcast_from_rank0(value: Any) -> Any:
    """Return rank 0's value on all ranks. Collective; it must be picklable."""
    if not _has_ranks():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=_device())
    return values[0]


def gather_from_ranks(value: Any) -> list[Any]:
    """Return the values of all ranks, on all of them. Collective; they must be picklable."""
    if not _has_ranks():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def once(work: Callable[[], Any]) -> Any:
    """Do some work on rank 0, and return its result on all ranks; its failure is that of all. Collective."""
    result, failure = None, None
    if is_first():
        try:
            result = work()
        except Exception as err:
            if not _has_ranks():
                raise
            failure = err
    result, failure = broadcast_from_rank0((result, failure))
    if failure is not None:
        raise failure
    return result


def wait_for_all() -> None:
    if _has_ranks():
        dist.barrier()


# Distribution of a model, read from its actual wrapper


def strategy_text(wrapped: Any, model: Any) -> str:
    """How the model is distributed; "" for one process on one device."""
    backend = dist.get_backend() if dist.is_initialized() else ""
    many = f"{world_size()} processes ({backend})"
    if type(wrapped).__name__ == "DeepSpeedEngine":
        return f"DeepSpeed ZeRO-{wrapped.zero_optimization_stage()} over {many}"
    if is_sharded(wrapped):
        own = sum(getattr(one, "to_local", lambda one=one: one)().numel() for one in wrapped.parameters())
        share = own / sum(parameter.numel() for parameter in wrapped.parameters())
        return f"FSDP2 over {many}, {share:.1%} of the weights each"
    devices = set(map(str, getattr(model, "hf_device_map", {}).values()))
    spread = f", {len(devices)} devices each" if len(devices) > 1 else ""
    if isinstance(wrapped, torch.nn.parallel.DistributedDataParallel):
        return f"DDP over {many}{spread}"
    return f"layers on {len(devices)} devices, one active at a time" if spread else ""
