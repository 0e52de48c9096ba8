"""Which checkpoint a run resumes from, and what of it has to fit."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune.arguments.resume import resumed_arguments
from llmtune.checkpoint import (
    ADAPTER_FILE,
    numbered_checkpoints,
    read_seal,
    read_settings,
    read_state,
    saved_settings,
    what_is_missing,
)
from llmtune.distributed.launch import planned_processes
from llmtune.distributed.ranks import launch_id, restart_count
from llmtune.errors import CheckpointError
from llmtune.utils.logging import get_logger

if TYPE_CHECKING:
    from llmtune.arguments.sft import SftArguments

__all__ = ["RATES", "check_same_data", "check_steps_left", "find_resumable", "resume_run"]

LAST = "last"
RUN_NAME = re.compile(r"v(\d+)-")
RATES = {"learning_rate", "weight_decay", "lr_scheduler_type", "warmup_ratio"}
"""What optimizer and scheduler keep a copy of, which a resumed run would follow."""


def resume_run(args: SftArguments) -> tuple[SftArguments, Path | None]:
    """The arguments of the run, and the checkpoint that it resumes from; None where it begins.

    What is not given comes from the checkpoint, and what is given must fit it: see `llmtune.arguments.resume`.

    Raises:
        CheckpointError: It is missing, incomplete or of another run.
    """
    checkpoint = find_resumable(args)
    if checkpoint is None:
        return args, None
    saved = read_settings(checkpoint)
    resumed = resumed_arguments(args, saved, checkpoint)
    for line in resumed.lines(checkpoint):
        get_logger().info(line)
    args = resumed.args
    _check_same_step(checkpoint, args)
    _check_weights(checkpoint, args)
    if args.deepspeed_config_path and (rates := sorted(RATES & set(resumed.changed))):
        flags = " ".join(f"--{name}" for name in rates)
        raise CheckpointError(f"DeepSpeed keeps its rates with its optimizer: resume without {flags}.")
    if saved.get("peft_path"):
        args.peft_path = str(checkpoint)  # its adapters have the shape of those that the run started from
    args.changed_on_resume = frozenset(resumed.changed)
    return args, checkpoint


def find_resumable(args: SftArguments) -> Path | None:
    """The checkpoint that a run resumes from, proven whole; None where it begins.

    A run's folder means its last whole checkpoint; `last`, that of the newest run of this model, and nothing where
    there is none yet, so that the same command can be started again and again.

    Raises:
        CheckpointError: It is missing or incomplete.
    """
    runs = _runs(args)
    if restart_count() and (own := [run for run in runs if saved_settings(run).get("_launch") == launch_id()]):
        return _whole_checkpoint(own[0])  # torchrun has started the processes again
    if args.resume_from_checkpoint is None:
        return None
    if args.resume_from_checkpoint != LAST:
        return _whole_checkpoint(Path(args.resume_from_checkpoint).expanduser())
    if runs:
        return _whole_checkpoint(runs[0])
    get_logger().info("--resume_from_checkpoint last: no run has a checkpoint yet, so this one begins.")
    return None


def _runs(args: SftArguments) -> list[Path]:
    """The runs of this model that have checkpoints, the newest first."""
    if args.output_dir_flat:
        run = Path(args.output_dir).expanduser()
        return [run] if numbered_checkpoints(run) else []
    folder = Path(args.output_dir).expanduser() / args.display_name()
    numbered = [(int(found.group(1)), path) for path in folder.glob("v*-*") if (found := RUN_NAME.match(path.name))]
    return [run for _, run in sorted(numbered, reverse=True) if numbered_checkpoints(run)]


def _whole_checkpoint(folder: Path) -> Path:
    """The checkpoint that a folder means, proven whole: itself, or of a run's folder its last whole one."""
    if not folder.is_dir():
        raise CheckpointError(f"--resume_from_checkpoint {folder}: there is no such folder. Look below output/.")
    candidates = [path.resolve() for path in reversed(numbered_checkpoints(folder))] or [folder.resolve()]
    for candidate in candidates:
        missing = what_is_missing(candidate)
        if not missing:
            return candidate
        if candidate != candidates[-1]:
            get_logger().warning("%s %s: the one before it is tried.", candidate, missing)
    raise CheckpointError(
        f"{candidates[0]} {what_is_missing(candidates[0])}. Resume from another checkpoint of the run."
    )


def _check_same_step(folder: Path, args: SftArguments) -> None:
    """Refuse what would meet other data than the run would have met, or cannot be divided anew."""
    seal = read_seal(folder)
    if seal is None:  # of a version, or a tool, that wrote none
        return
    processes = planned_processes(args.nproc, os.environ)
    if processes is None:  # one per GPU, of the machine where torchrun starts
        return
    ours, theirs = args.step_size(processes), seal["step_size"]
    if ours != theirs:
        raise CheckpointError(
            f"{folder} was trained with {theirs} samples a step, and this run has {ours} (--batch_size x "
            "--gradient_accumulation_steps x processes): its place in the data would be another. Give as many."
        )
    strategy = "fsdp" if args.fsdp else "deepspeed" if args.deepspeed_config_path else ""
    if strategy != seal["strategy"]:
        flag = {"": "neither --fsdp nor --deepspeed_config_path", "fsdp": "--fsdp true"}
        raise CheckpointError(
            f"The optimizer's state in {folder} was saved with "
            f"{flag.get(seal['strategy'], '--deepspeed_config_path')}. Resume with the same."
        )
    if strategy == "deepspeed" and processes != seal["world_size"]:
        raise CheckpointError(
            f"DeepSpeed divided the state in {folder} among {seal['world_size']} processes, and this run has "
            f"{processes}. Resume with as many; DDP and --fsdp resume with any number."
        )
    if processes != seal["world_size"]:
        text = "%s processes go on where %s stopped: with the same data in the same order; dropout is drawn anew."
        get_logger().warning(text, processes, seal["world_size"])


def check_steps_left(folder: Path, num_steps: int) -> None:
    """Refuse to resume where a run of `num_steps` in all has nothing left to do.

    Raises:
        CheckpointError: The checkpoint is at that step, or beyond.
    """
    done = read_state(folder)["global_step"]
    if done >= num_steps:
        raise CheckpointError(
            f"Nothing is left to train: {folder} is at step {done} of {num_steps}. "
            "Raise --max_steps or --num_train_epochs."
        )


def check_same_data(folder: Path, ours: dict[str, Any]) -> None:
    """Refuse to resume on other samples: the place in the data, and the run, would be another's.

    Args:
        ours: What `data_identity` says of this run.

    Raises:
        CheckpointError: The checkpoint was trained on others.
    """
    theirs = read_settings(folder).get("_data")
    if not isinstance(theirs, dict) or theirs.get("digest") == ours["digest"]:
        return

    def text(found: dict[str, Any]) -> str:
        counts = (f"{found.get(name)} {name.replace('_', ' ')}" for name in ("samples", "tokens", "trainable_tokens"))
        return ", ".join(counts)

    raise CheckpointError(
        f"{folder} was trained on other data: {text(theirs)}, and this run has {text(ours)}. Resume with the --dataset "
        "and the files of that run; to go on with other data, start anew with --peft_path, or with the checkpoint as "
        "--model_id_or_path."
    )


def _check_weights(folder: Path, args: SftArguments) -> None:
    names = ["model.safetensors", "model.safetensors.index.json"] if args.sft_type == "full" else [ADAPTER_FILE]
    if not any((folder / name).is_file() for name in names):
        raise CheckpointError(f"{folder} has no {names[0]}. Resume from another checkpoint of the run.")
