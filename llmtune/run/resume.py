"""The checkpoint that a run resumes from, and the checks that it fits."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune.arguments.inheritance import resumed_arguments
from llmtune.checkpoint import (
    ADAPTER_FILE,
    numbered_checkpoints,
    read_seal,
    read_settings,
    read_state,
    saved_settings,
    stage_of,
    what_is_missing,
)
from llmtune.distributed.launch import planned_processes
from llmtune.distributed.ranks import launch_id, restart_count
from llmtune.errors import CheckpointError
from llmtune.utils.logging import get_logger

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments


LAST = "last"
RUN_NAME = re.compile(r"v(\d+)-")
RATES = {"learning_rate", "weight_decay", "lr_scheduler_type", "warmup_ratio"}
"""Arguments that optimizer and scheduler save a copy of, which a resumed run would use."""


def resume_run(args: StageArguments) -> tuple[StageArguments, Path | None]:
    """Return the arguments of the run, and the checkpoint that it resumes from; None for a new run.

    Arguments not given are the checkpoint's, and those given must fit it: see `llmtune.arguments.inheritance`.

    Raises:
        CheckpointError: It is missing, incomplete or does not fit.
    """
    checkpoint = find_resumable(args)
    if checkpoint is None:
        return args, None
    saved = read_settings(checkpoint)
    if (stage := stage_of(checkpoint)) != args.STAGE:
        raise CheckpointError(
            f"{checkpoint} was trained by `llmtune {stage}`: resume it with that command. To start {args.STAGE} from "
            "its weights, give an adapter as --peft_path, or a folder with full weights as --model_id_or_path."
        )
    resumed = resumed_arguments(args, saved, checkpoint)
    for line in resumed.lines(checkpoint):
        get_logger().info(line)
    args = resumed.args
    _check_same_step(checkpoint, args)
    _check_weights(checkpoint, args)
    if args.deepspeed_config_path and (rates := sorted(RATES & set(resumed.changed))):
        flags = " ".join(f"--{name}" for name in rates)
        raise CheckpointError(
            f"DeepSpeed restores learning rate and weight decay from the checkpoint: resume without {flags}."
        )
    if saved.get("peft_path"):
        args.peft_path = str(checkpoint)  # its adapters have the shapes of those that the run started from
    args.changed_on_resume = frozenset(resumed.changed)
    return args, checkpoint


def find_resumable(args: StageArguments, *, log: bool = True) -> Path | None:
    """Return the checkpoint that a run resumes from, checked to be complete; None for a new run.

    A run folder means its last complete checkpoint; `last`, that of the newest run of this model, or a new run if there
    is none, so that the same command can be repeated.

    Raises:
        CheckpointError: It is missing or incomplete.
    """
    runs = _runs(args)
    if restart_count() and (own := [run for run in runs if saved_settings(run).get("_launch") == launch_id()]):
        return _whole_checkpoint(own[0], log)  # torchrun has restarted the processes
    if args.resume_from_checkpoint is None:
        return None
    if args.resume_from_checkpoint != LAST:
        return _whole_checkpoint(Path(args.resume_from_checkpoint).expanduser(), log)
    if runs:
        return _whole_checkpoint(runs[0], log)
    if log:
        get_logger().info("--resume_from_checkpoint last: no run has a checkpoint yet, so this is a new run.")
    return None


def _runs(args: StageArguments) -> list[Path]:
    """Runs of this model that have checkpoints, newest first."""
    if args.output_dir_flat:
        run = Path(args.output_dir).expanduser()
        return [run] if numbered_checkpoints(run) else []
    folder = Path(args.output_dir).expanduser() / args.display_name()
    numbered = [(int(found.group(1)), path) for path in folder.glob("v*-*") if (found := RUN_NAME.match(path.name))]
    return [run for _, run in sorted(numbered, reverse=True) if numbered_checkpoints(run)]


def _whole_checkpoint(folder: Path, log: bool = True) -> Path:
    """The checkpoint of a folder, checked to be complete: itself, or the last complete one of a run folder."""
    if not folder.is_dir():
        raise CheckpointError(f"--resume_from_checkpoint {folder}: there is no such folder. Look below output/.")
    candidates = [path.resolve() for path in reversed(numbered_checkpoints(folder))] or [folder.resolve()]
    for candidate in candidates:
        missing = what_is_missing(candidate)
        if not missing:
            return candidate
        if candidate != candidates[-1] and log:
            get_logger().warning("%s %s: trying the one before it.", candidate, missing)
    raise CheckpointError(
        f"{candidates[0]} {what_is_missing(candidates[0])}. Resume from another checkpoint of the run."
    )


def _check_same_step(folder: Path, args: StageArguments) -> None:
    """Refuse settings under which the run would see other data, or whose state cannot be resharded."""
    seal = read_seal(folder)
    if seal is None:  # written by an older version, or by another tool
        return
    processes = planned_processes(args.nproc, os.environ)
    if processes is None:  # one per GPU, of the machine where torchrun starts
        return
    ours, theirs = args.step_size(processes), seal["step_size"]
    if ours != theirs:
        raise CheckpointError(
            f"{folder} was trained with {theirs} samples per step, but this command has {ours} (--batch_size x "
            "--gradient_accumulation_steps x processes): its position in the data would differ. Use the same product."
        )
    strategy = "fsdp" if args.fsdp else "deepspeed" if args.deepspeed_config_path else ""
    if strategy != seal["strategy"]:
        flag = {"": "neither --fsdp nor --deepspeed_config_path", "fsdp": "--fsdp true"}
        raise CheckpointError(
            f"The optimizer state in {folder} was saved with "
            f"{flag.get(seal['strategy'], '--deepspeed_config_path')}. Resume with the same."
        )
    if strategy == "deepspeed" and processes != seal["world_size"]:
        raise CheckpointError(
            f"DeepSpeed sharded the state in {folder} over {seal['world_size']} processes, but this run has "
            f"{processes}. Resume with the same number; DDP and --fsdp resume with any."
        )
    if processes != seal["world_size"]:
        text = "Resuming with %s processes instead of %s: same data in the same order, but other dropout masks."
        get_logger().warning(text, processes, seal["world_size"])


def check_steps_left(folder: Path, num_steps: int) -> None:
    """Refuse to resume if no steps are left.

    Raises:
        CheckpointError: The checkpoint is at step `num_steps` or beyond.
    """
    done = read_state(folder)["global_step"]
    if done >= num_steps:
        raise CheckpointError(
            f"Nothing is left to train: {folder} is at step {done} of {num_steps}. "
            "Raise --max_steps or --num_train_epochs."
        )


def check_same_data(folder: Path, ours: dict[str, Any]) -> None:
    """Refuse to resume on other samples: the position in the data would be wrong.

    Args:
        ours: The `data_identity` of this run.

    Raises:
        CheckpointError: The checkpoint was trained on other samples.
    """
    theirs = read_settings(folder).get("_data")
    if not isinstance(theirs, dict) or theirs.get("digest") == ours["digest"]:
        return

    def text(found: dict[str, Any]) -> str:
        counts = (f"{found.get(name)} {name.replace('_', ' ')}" for name in ("samples", "tokens", "trainable_tokens"))
        return ", ".join(counts)

    raise CheckpointError(
        f"{folder} was trained on other data: {text(theirs)}, but this run has {text(ours)}. Resume with the --dataset "
        "and files of that run; to continue on other data, start a new run from --peft_path, or from the checkpoint as "
        "--model_id_or_path."
    )


def _check_weights(folder: Path, args: StageArguments) -> None:
    names = ["model.safetensors", "model.safetensors.index.json"] if args.sft_type == "full" else [ADAPTER_FILE]
    if not any((folder / name).is_file() for name in names):
        raise CheckpointError(f"{folder} has no {names[0]}. Resume from another checkpoint of the run.")
