"""Flags of distributed training, and their checks."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import llmtune
from llmtune.arguments.fields import fixed, free
from llmtune.errors import MissingPackageError, UsageError

if TYPE_CHECKING:
    from llmtune.arguments.checks import Problems
    from llmtune.arguments.sft import SftArguments

__all__ = [
    "DistributedArguments",
    "check_distributed",
    "deepspeed_file",
    "need_deepspeed",
    "packaged_configs",
    "read_deepspeed",
    "zero_stage",
]


GUIDES_CALL_THEM = re.compile(r"(?:zero|_z)[_-]?(?:stage)?[_-]?([23])(?!\d)", re.I)
"""deepspeed_zero_stage2_config (MedicalGPT), ds_config_zero3 (Qwen), ds_z3_offload_config (LLaMA-Factory)."""
GUIDES_KEEP_THEM_IN = ("finetune", "deepspeed", "scripts")


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


def zero_stage(name: str | None) -> int:
    """ZeRO stage of a DeepSpeed configuration, read from the file's content; 0 without one.

    Raises:
        UsageError: The file is not a DeepSpeed configuration.
    """
    file = None if name is None else deepspeed_file(name)
    if file is None:
        return 0
    stage = read_deepspeed(file).get("zero_optimization", {}).get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise UsageError(
            f"--deepspeed_config_path {file}: zero_optimization.stage is {stage!r}; it must be 0, 1, 2 or 3."
        )
    return int(stage)


def read_deepspeed(file: Path) -> dict[str, Any]:
    """A DeepSpeed configuration, as written.

    Raises:
        UsageError: The file is not a JSON object.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise UsageError(f"--deepspeed_config_path {file} cannot be read: {err}.") from err
    if not isinstance(config, dict) or not isinstance(config.get("zero_optimization", {}), dict):
        raise UsageError(f"--deepspeed_config_path {file} is not a DeepSpeed configuration (a JSON object).")
    return config


def packaged_configs() -> list[str]:
    """Names of the DeepSpeed configurations that come with llmtune."""
    return sorted(file.stem for file in _packaged_folder().glob("*.json"))


def deepspeed_file(name: str) -> Path | None:
    """The file of `--deepspeed_config_path`: a path, or the name of a packaged one."""
    given = Path(name).expanduser()
    if given.is_file():
        return given
    if given.parent.name not in ("", "ds_config", *GUIDES_KEEP_THEM_IN):
        return None
    stem = given.name.removesuffix(".json")
    packaged = _packaged_folder() / f"{stem}.json"
    if not packaged.is_file() and (found := GUIDES_CALL_THEM.search(stem)):
        offload = "_offload" if "offload" in stem else ""
        packaged = _packaged_folder() / f"zero{found[1]}{offload}.json"
    return packaged if packaged.is_file() else None


def _packaged_folder() -> Path:
    package = Path(llmtune.__file__).parent
    installed = package / "ds_config"
    return installed if installed.is_dir() else package.parent / "ds_config"


def need_deepspeed() -> None:
    """Raise MissingPackageError where deepspeed is not installed; it is not imported, which takes seconds."""
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingPackageError(
            "--deepspeed_config_path needs deepspeed. Install it with: pip install 'llmtune[deepspeed]'"
        )
