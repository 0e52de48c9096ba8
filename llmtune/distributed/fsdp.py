"""FSDP2: weights, gradients and optimizer state sharded over the ranks."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from llmtune.utils.accelerator import accelerator

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments


def fsdp_fields(args: StageArguments) -> dict[str, Any]:
    """Return the fields of TrainingArguments for `--fsdp`."""
    if not args.fsdp:
        return {}
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "reshard_after_forward": True,
            "cpu_offload": args.fsdp_offload and accelerator().is_gpu,
            "state_dict_type": "SHARDED_STATE_DICT",  # for resuming; full weights are saved besides
            "activation_checkpointing": False,
        },
    }


def let_cpus_shard() -> None:
    """Let accelerate apply FSDP2 on CPUs; else they silently run DDP, with whole copies of everything."""
    from accelerate import state
    from accelerate.utils import DistributedType

    original = state.AcceleratorState.__init__
    if hasattr(original, "__wrapped__"):
        return

    def with_cpus(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        fresh = not state.AcceleratorState._shared_state
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fresh and fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    with_cpus.__wrapped__ = original  # type: ignore[attr-defined]
    # upstream: accelerate 1.15.0 accelerate/state.py: applies the FSDP plugin on accelerators only
    state.AcceleratorState.__init__ = with_cpus


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has sharded a model's weights."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def stored_names(model: nn.Module) -> set[str]:
    """Names of the tensors in a checkpoint; a weight shared by two layers has one."""
    return {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}


@torch.no_grad()
def whole_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Gather the weights of a checkpoint in the CPU memory of rank 0, tensor by tensor; empty on other ranks.

    Collective. Of a model with adapters, only the trained parameters: the rest is not saved.
    """
    from torch.distributed.tensor import DTensor

    wanted = stored_names(model)
    if hasattr(model, "peft_config"):
        wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    whole: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if name not in wanted:
            continue
        tensor = value.full_tensor() if isinstance(value, DTensor) else value
        if dist.get_rank() == 0:
            whole[name] = tensor.detach().cpu()
    return whole


# Shards of an FSDP model, written in the background by torch's asynchronous checkpointing


SAVES = 2
"""Saves per checkpoint: model shards and optimizer shards. Each has its own process group, as neither waits for the
other."""


class BackgroundSaves:
    """Starts saves that run in threads, from a copy of the state in CPU memory."""

    def __init__(self) -> None:
        self._groups: list[Any] = []

    @contextlib.contextmanager
    def divert(self) -> Iterator[list[Future[Any]]]:
        """Within the block, let torch.distributed.checkpoint save in the background. Yield the pending saves."""
        dcp: Any = importlib.import_module("torch.distributed.checkpoint")
        if not self._groups:
            self._groups = [dist.new_group(backend="gloo") for _ in range(SAVES)]
        running: list[Future[Any]] = []
        save = dcp.save

        def start(state_dict: Any, **options: Any) -> None:
            running.append(dcp.async_save(state_dict, process_group=self._groups[len(running)], **options))

        # upstream: accelerate 1.15.0 accelerate/utils/fsdp_utils.py: saves shards in the foreground only
        dcp.save = start
        try:
            yield running
        finally:
            dcp.save = save
