"""Distribution of a run over processes: checked, set up, and reported as it really is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from llmtune.arguments.sft import SftArguments
from llmtune.distributed.deepspeed import leave_unimported, need_deepspeed, zero_stage
from llmtune.distributed.extensions import release_dead_builds
from llmtune.distributed.fsdp import is_sharded, let_cpus_shard
from llmtune.distributed.locks import first_on_this_machine
from llmtune.distributed.ranks import is_distributed, local_rank, world_size
from llmtune.errors import UsageError
from llmtune.models.gpus import gib
from llmtune.planning.auto import free_memory, used_memory
from llmtune.run.log import Decisions
from llmtune.training.training_arguments import training_arguments
from llmtune.utils.logging import get_logger

__all__ = ["AtStart", "ShowRun", "build_training_arguments", "check_processes", "strategy_text"]


def check_processes(args: SftArguments) -> None:
    """Refuse a strategy that these processes cannot run, before any work.

    Raises:
        UsageError: Too few processes. MissingPackageError: deepspeed is asked for and not installed.
    """
    if args.deepspeed_config_path is not None:
        need_deepspeed()
    if args.ddp_backend == "gloo" and args.quantization_bit and torch.cuda.is_available():
        raise UsageError(
            "--ddp_backend gloo does not work with --quantization_bit on GPUs, which need nccl: remove it."
        )
    if not is_distributed():
        if args.nproc != 1:
            raise UsageError(
                f"--nproc {args.nproc} is for the command llmtune sft, which starts the processes. From Python, "
                f"run your script with torchrun --nproc_per_node {args.nproc or 'gpu'}."
            )
        if args.fsdp:
            raise UsageError("--fsdp shards a model over processes, and there is only one: use --nproc 2 or more.")
        if args.ddp_backend is not None:
            get_logger().warning("--ddp_backend has no effect in this run: there is one process.")
        if args.deepspeed_config_path is None:  # else it would set up its processes before the data is ready
            training_arguments(args, Path(args.output_dir), has_validation=True)


def build_training_arguments(args: SftArguments, *, has_validation: bool) -> TrainingArguments:
    """Build TrainingArguments in all processes together; from here on they wait for each other, with a timeout.

    Raises:
        UsageError: transformers refuses the settings.
    """
    on_cpu = not torch.cuda.is_available()
    if args.device_map is not None and is_distributed():
        # accelerate refuses DDP for a model on several devices but under this name (Accelerator.verify_device_map)
        os.environ["ACCELERATE_BYPASS_DEVICE_MAP"] = "true"
    if args.fsdp and on_cpu:
        let_cpus_shard()
        if args.fsdp_offload:
            get_logger().warning("--fsdp_offload has no effect in this run: there is no GPU to offload from.")
    if args.deepspeed_config_path is not None:
        _prepare_deepspeed(on_cpu)
    leave_unimported()
    arguments = training_arguments(args, Path(args.output_dir), has_validation=has_validation)
    if arguments.device.type == "cuda":
        torch.cuda.set_device(arguments.device)
    if zero_stage(args.deepspeed_config_path) == 3:
        # else from_pretrained shards the weights over one process (deepspeed.zero.Init asks for the group)
        import deepspeed

        deepspeed.init_distributed(dist_backend=args.ddp_backend or ("gloo" if on_cpu else "nccl"))
    return arguments


def _prepare_deepspeed(on_cpu: bool) -> None:
    with first_on_this_machine("extensions"):
        if local_rank() == 0:
            release_dead_builds()
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if not is_distributed():  # DeepSpeed needs a process group even for one process
        defaults = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**defaults, "MASTER_PORT": str(_free_port())}.items():
            os.environ.setdefault(name, value)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class AtStart(TrainerCallback):
    """Calls `work` when training begins: all is wrapped, and no step was made."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.work()


class ShowRun(TrainerCallback):
    """Logs the block of the run when training begins, with the distribution that the trainer set up."""

    def __init__(self, trainer: Any, decisions: Decisions) -> None:
        self.trainer = trainer
        self.decisions = decisions

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        if text := strategy_text(self.trainer):
            self.decisions.fact("Distributed", text)
        free = gib(free_memory())
        self.decisions.fact("Memory", f"{gib(used_memory())} used with the model loaded, {free} free")
        self.decisions.show()


def strategy_text(trainer: Any) -> str:
    """How the model is distributed; "" for one process on one device."""
    wrapped = trainer.model_wrapped
    backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else ""
    many = f"{world_size()} processes ({backend})"
    if type(wrapped).__name__ == "DeepSpeedEngine":
        return f"DeepSpeed ZeRO-{wrapped.zero_optimization_stage()} over {many}"
    if is_sharded(wrapped):
        own = sum(_own_numel(parameter) for parameter in wrapped.parameters())
        share = own / sum(parameter.numel() for parameter in wrapped.parameters())
        return f"FSDP2 over {many}, {share:.1%} of the weights each"
    devices = set(map(str, getattr(trainer.model, "hf_device_map", {}).values()))
    spread = f", {len(devices)} devices each" if len(devices) > 1 else ""
    if isinstance(wrapped, torch.nn.parallel.DistributedDataParallel):
        return f"DDP over {many}{spread}"
    return f"layers on {len(devices)} devices, one active at a time" if spread else ""


def _own_numel(parameter: torch.nn.Parameter) -> int:
    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return int(local.numel())
