"""The flags of several processes and devices, and what of them contradicts itself."""

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


def zero_stage(name: str | None) -> int:
    """The ZeRO stage that a DeepSpeed configuration asks for, whatever its file is called; 0 without one.

    Raises:
        UsageError: The file is no configuration.
    """
    file = None if name is None else deepspeed_file(name)
    if file is None:
        return 0
    stage = read_deepspeed(file).get("zero_optimization", {}).get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise UsageError(f"--deepspeed_config_path {file}: zero_optimization.stage is {stage!r}; it is 0, 1, 2 or 3.")
    return int(stage)


def read_deepspeed(file: Path) -> dict[str, Any]:
    """A DeepSpeed configuration, as written.

    Raises:
        UsageError: The file is no JSON object.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise UsageError(f"--deepspeed_config_path {file} cannot be read: {err}.") from err
    if not isinstance(config, dict) or not isinstance(config.get("zero_optimization", {}), dict):
        raise UsageError(f"--deepspeed_config_path {file} holds no DeepSpeed configuration: a JSON object.")
    return config


def packaged_configs() -> list[str]:
    """Names of the DeepSpeed configurations that come with llmtune."""
    return sorted(file.stem for file in _packaged_folder().glob("*.json"))


def deepspeed_file(name: str) -> Path | None:
    """The file that `--deepspeed_config_path` means: a path, or the name of a packaged one."""
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
