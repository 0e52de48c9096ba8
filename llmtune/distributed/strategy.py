"""Distribution of a model, read from its actual wrapper."""

from __future__ import annotations

from typing import Any

import torch

from llmtune.distributed.fsdp import is_sharded
from llmtune.distributed.ranks import world_size

__all__ = ["strategy_text"]


def strategy_text(wrapped: Any, model: Any) -> str:
    """How the model is distributed; "" for one process on one device."""
    backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else ""
    many = f"{world_size()} processes ({backend})"
    if type(wrapped).__name__ == "DeepSpeedEngine":
        return f"DeepSpeed ZeRO-{wrapped.zero_optimization_stage()} over {many}"
    if is_sharded(wrapped):
        own = sum(_own_numel(parameter) for parameter in wrapped.parameters())
        share = own / sum(parameter.numel() for parameter in wrapped.parameters())
        return f"FSDP2 over {many}, {share:.1%} of the weights each"
    devices = set(map(str, getattr(model, "hf_device_map", {}).values()))
    spread = f", {len(devices)} devices each" if len(devices) > 1 else ""
    if isinstance(wrapped, torch.nn.parallel.DistributedDataParallel):
        return f"DDP over {many}{spread}"
    return f"layers on {len(devices)} devices, one active at a time" if spread else ""


def _own_numel(parameter: torch.nn.Parameter) -> int:
    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return int(local.numel())
