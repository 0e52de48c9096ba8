"""The flags of several processes and devices, and what of them contradicts itself."""

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
    """Several processes and devices."""

    nproc: int = free(1)
    """Processes on this machine, one a device: above 1, torchrun takes over. 0: as many as there are GPUs."""
    max_restarts: int = free(0)
    """With --nproc: how often all processes start again after one has died; they go on from the last checkpoint."""
    ddp_backend: Literal["nccl", "gloo", "mpi", "ccl"] | None = free(None)
    """How the processes talk to each other. Default: nccl on GPUs, gloo on CPUs."""
    deepspeed_config_path: str | None = free(None)
    """DeepSpeed: a JSON file, or zero2, zero3, zero2_offload, zero3_offload for the ones that come with llmtune."""
    fsdp: bool = fixed(False)
    """Divide weights, gradients and optimizer state among the processes (PyTorch's FSDP2)."""
    fsdp_offload: bool = free(False)
    """With --fsdp: keep each process's share in the machine's memory while the GPU does not need it."""
    async_save: bool = free(False)
    """With --fsdp: write the shares of model and optimizer while training goes on, from a copy in memory."""


def check_distributed(args: SftArguments, problems: Problems) -> None:
    """Refuse what cannot be meant, before anything is loaded."""
    problems.need(args.nproc >= 0, f"--nproc must be 0 or more, not {args.nproc}.")
    if args.deepspeed_config_path is not None:
        problems.need(
            deepspeed_file(args.deepspeed_config_path) is not None,
            f"--deepspeed_config_path {args.deepspeed_config_path}: there is no such file. Give one of your own, or "
            f"{', '.join(packaged_configs())}, which come with it.",
        )
    problems.need(
        not (args.device_map and (args.fsdp or args.deepspeed_config_path)),
        "--device_map spreads whole layers, --fsdp and --deepspeed_config_path divide each of them: give one of them.",
    )
    problems.need(
        not (args.fsdp and args.deepspeed_config_path),
        "--fsdp and --deepspeed_config_path divide the same things: give one of them.",
    )
    problems.need(
        not (args.fsdp and args.only_save_model),
        "--fsdp saves each process's part together with what resuming needs: leave --only_save_model true away.",
    )
    problems.need(
        not (args.quantization_bit and args.fsdp and args.quantization_bit == 8),
        "--fsdp cannot divide weights of 8 bits; take --quantization_bit 4, or leave --fsdp away.",
    )
    problems.need(
        not (args.on_nan == "skip" and args.deepspeed_config_path),
        "--on_nan skip cannot leave a step out under --deepspeed_config_path, which takes it within the backward pass: "
        "leave it away, and such a step stops the run.",
    )
    problems.need(
        not args.async_save or (args.fsdp and not args.push_to_hub),
        "--async_save needs --fsdp, whose shares are what is written meanwhile, and goes without --push_to_hub.",
    )
    divided = "--fsdp" if args.fsdp else "--deepspeed_config_path" if _stage(args, problems) == 3 else ""
    problems.need(
        not (divided and (args.lora_init != "default" or args.sft_type == "adalora")),
        f"{divided} divides the weights, which --lora_init {args.lora_init} and --sft_type adalora read whole: "
        "leave one of the two away.",
    )


def _stage(args: SftArguments, problems: Problems) -> int:
    try:
        return zero_stage(args.deepspeed_config_path)
    except UsageError as err:
        problems.need(False, str(err))
        return 0
