"""Flags of distributed training, and what they exclude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmtune.arguments.fields import fixed, free
from llmtune.arguments.rules import Rule, at_least


@dataclass(kw_only=True)
class DistributedArguments:
    """Distributed training."""

    nproc: int = free(1, within=at_least(0))
    """Processes on this machine, one per device; above 1, torchrun starts them. 0: one per GPU."""
    max_restarts: int = free(0, within=at_least(0))
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

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda args: not (args.device_map and (args.fsdp or args.deepspeed_config_path)),
            "--device_map places whole layers on GPUs, --fsdp and --deepspeed_config_path shard them: use one of them.",
        ),
        Rule(
            lambda args: not (args.fsdp and args.deepspeed_config_path),
            "--fsdp and --deepspeed_config_path both shard the model: use one of them.",
        ),
        Rule(
            lambda args: not (args.fsdp and args.only_save_model),
            "--fsdp saves each rank's shards together with the optimizer state: remove --only_save_model true.",
        ),
        Rule(
            lambda args: not (args.fsdp and args.quantization_bit == 8),
            "--fsdp cannot shard 8-bit weights: use --quantization_bit 4, or remove --fsdp.",
        ),
        Rule(
            lambda args: not (args.on_nan == "skip" and args.deepspeed_config_path),
            "--on_nan skip does not work with --deepspeed_config_path, which updates the weights within the backward "
            "pass: remove it, and a NaN loss stops the run.",
        ),
        Rule(
            lambda args: not args.async_save or (args.fsdp and not args.push_to_hub),
            "--async_save needs --fsdp, whose shards it writes in the background, and excludes --push_to_hub.",
        ),
    )
