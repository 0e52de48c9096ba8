"""Flags of distributed training, and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llmtune.arguments.fields import fixed, free
from llmtune.distributed.deepspeed import deepspeed_file, packaged_configs, zero_stage
from llmtune.errors import UsageError

if TYPE_CHECKING:
    from llmtune.arguments.checks import Problems
    from llmtune.arguments.sft import SftArguments

__all__ = [
    "DistributedArguments",
    "check_distributed",
]


@dataclass(kw_only=True)
class DistributedArguments:
    """Distributed training."""

    nproc: int = free(1)
    """Processes on this machine, one per device; above 1, torchrun starts them. 0: one per GPU."""
    max_restarts: int = free(0)
    """With --nproc: how often to restart all processes after one has died; they resume from the last checkpoint."""
    ddp_backend: Literal["nccl", "gloo", "mpi", "ccl"] | None = free(None)
    """Backend of torch.distributed. Default: nccl on GPUs, gloo on CPUs."""
    deepspeed_config_path: str | None = free(None)
    """DeepSpeed: a JSON file, or one of llmtune's own: zero2, zero3, zero2_offload, zero3_offload."""
    fsdp: bool = fixed(False)
    """Shard weights, gradients and optimizer state over the processes (PyTorch FSDP2)."""
    fsdp_offload: bool = free(False)
    """With --fsdp: keep the shards in CPU memory while the GPU does not need them."""
    async_save: bool = free(False)
    """With --fsdp: write checkpoint shards in the background, from a copy in CPU memory."""


def check_distributed(args: SftArguments, problems: Problems) -> None:
    """Refuse contradictions before anything is loaded."""
    problems.need(args.nproc >= 0, f"--nproc must be 0 or more, not {args.nproc}.")
    if args.deepspeed_config_path is not None:
        problems.need(
            deepspeed_file(args.deepspeed_config_path) is not None,
            f"--deepspeed_config_path {args.deepspeed_config_path}: there is no such file. Give your own, or one of "
            f"llmtune's: {', '.join(packaged_configs())}.",
        )
    problems.need(
        not (args.device_map and (args.fsdp or args.deepspeed_config_path)),
        "--device_map places whole layers on GPUs, --fsdp and --deepspeed_config_path shard them: use one of them.",
    )
    problems.need(
        not (args.fsdp and args.deepspeed_config_path),
        "--fsdp and --deepspeed_config_path both shard the model: use one of them.",
    )
    problems.need(
        not (args.fsdp and args.only_save_model),
        "--fsdp saves each rank's shards together with the optimizer state: remove --only_save_model true.",
    )
    problems.need(
        not (args.quantization_bit and args.fsdp and args.quantization_bit == 8),
        "--fsdp cannot shard 8-bit weights: use --quantization_bit 4, or remove --fsdp.",
    )
    problems.need(
        not (args.on_nan == "skip" and args.deepspeed_config_path),
        "--on_nan skip does not work with --deepspeed_config_path, which updates the weights within the backward pass: "
        "remove it, and a NaN loss stops the run.",
    )
    problems.need(
        not args.async_save or (args.fsdp and not args.push_to_hub),
        "--async_save needs --fsdp, whose shards it writes in the background, and excludes --push_to_hub.",
    )
    sharding = "--fsdp" if args.fsdp else "--deepspeed_config_path" if _stage(args, problems) == 3 else ""
    problems.need(
        not (sharding and (args.lora_init != "default" or args.sft_type == "adalora")),
        f"{sharding} shards the weights, which --lora_init {args.lora_init} and --sft_type adalora need unsharded: "
        "remove one of the two.",
    )


def _stage(args: SftArguments, problems: Problems) -> int:
    try:
        return zero_stage(args.deepspeed_config_path)
    except UsageError as err:
        problems.need(False, str(err))
        return 0
