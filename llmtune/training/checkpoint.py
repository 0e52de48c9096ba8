"""Checkpoints: what completes one, what makes one whole, which one to resume from."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune.errors import CheckpointError
from llmtune.templates.images import images_of
from llmtune.utils.files import read_json, write_json
from llmtune.utils.logging import get_logger
from llmtune.utils.ranks import launch_id, restart_count, world_size

if TYPE_CHECKING:
    from llmtune.arguments.sft import SftArguments

__all__ = [
    "check_resumable",
    "check_steps_left",
    "complete_checkpoint",
    "find_resumable",
    "last_checkpoint",
    "link_last_state",
    "seal_checkpoint",
    "what_is_missing",
]

ADAPTER_FILE = "adapter_model.safetensors"
ARGS_FILE = "sft_args.json"
SEAL_FILE = "checkpoint.json"
LAST = "last"
RUN_NAME = re.compile(r"v(\d+)-")
RESUME_FILES = ("trainer_state.json", "scheduler.pt")
OPTIMIZER_FILES = ("optimizer.pt", "optimizer_0/*", "global_step*/*optim_states.pt")
LAST_STATE = re.compile(
    r"(adapter_config\.json|adapter_model\..+|config\.json|generation_config\.json|model.*\.safetensors(\.index\.json)?"
    r"|tokenizer.*|vocab\..+|merges\.txt|special_tokens_map\.json|added_tokens\.json|chat_template\.jinja"
    r"|(video_)?(pre)?processor_config\.json"
    r"|trainer_state\.json|training_args\.bin|README\.md)$"
)


def complete_checkpoint(folder: Path, model: Any, tokenizer: Any) -> None:
    """Add to a checkpoint what serving it needs and Trainer leaves out.

    The generation settings of an adapter, and how images are read.
    """
    config = getattr(model, "generation_config", None)
    if config is not None and not (folder / "generation_config.json").exists():
        config.save_pretrained(str(folder))
    images = images_of(tokenizer)
    if images is not None:
        images.save(folder)


def seal_checkpoint(folder: Path, *, world_size: int, step_size: int, strategy: str) -> None:
    """Write down what a whole checkpoint consists of, as its last file.

    Args:
        world_size: Processes of the run. step_size: Samples of an optimizer step, over all of them.
        strategy: What divides the optimizer's state: "", fsdp or deepspeed.
    """
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    record = {"world_size": world_size, "step_size": step_size, "strategy": strategy, "files": sizes}
    write_json(folder / SEAL_FILE, record)


def what_is_missing(folder: Path) -> str:
    """Why a checkpoint cannot be resumed from; "" where it can."""
    names = [name for name in RESUME_FILES if not (folder / name).is_file()]
    if not any(next(folder.glob(pattern), None) for pattern in OPTIMIZER_FILES):
        names.append("optimizer.pt")
    if not any(folder.glob("rng_state*.pth")):
        names.append("rng_state.pth")
    if names:
        return f"lacks {', '.join(names)}: it is incomplete, or was saved with --only_save_model true"
    for name, size in read_json(folder / SEAL_FILE).get("files", {}).items():
        file = folder / name
        if not file.is_file():
            return f"lacks {name}"
        if file.stat().st_size != size:
            return f"has {file.stat().st_size:,} bytes of {name}, which had {size:,}"
    return ""


def last_checkpoint(run: Path) -> Path | None:
    """The checkpoint-N of a run with the highest N."""
    found = _checkpoints(run)
    return found[-1] if found else None


def _checkpoints(run: Path) -> list[Path]:
    """Those of a run, oldest first."""
    numbered = [(int(path.name[11:]), path) for path in run.glob("checkpoint-*") if path.name[11:].isdigit()]
    return [path for _, path in sorted(numbered)]


def find_resumable(args: SftArguments) -> Path | None:
    """The checkpoint that a run goes on from, proven whole and of this model; None where it begins.

    A run's folder means its last whole checkpoint; `last`, that of the newest run of this model, and nothing where
    there is none yet, so that the same command can be started again and again.

    Raises:
        CheckpointError: It is missing, incomplete or of another model.
    """
    runs = _runs(args)
    if restart_count() and (own := [run for run in runs if read_json(run / ARGS_FILE).get("_launch") == launch_id()]):
        return check_resumable(own[0], args)  # torchrun has started the processes again
    if args.resume_from_checkpoint is None:
        return None
    if args.resume_from_checkpoint != LAST:
        return check_resumable(Path(args.resume_from_checkpoint), args)
    if runs:
        return check_resumable(runs[0], args)
    get_logger().info("--resume_from_checkpoint last: no run has a checkpoint yet, so this one begins.")
    return None


def _runs(args: SftArguments) -> list[Path]:
    """The runs of this model that have checkpoints, the newest first."""
    folder = Path(args.output_dir).expanduser() / args.display_name()
    numbered = [(int(found.group(1)), path) for path in folder.glob("v*-*") if (found := RUN_NAME.match(path.name))]
    return [run for _, run in sorted(numbered, reverse=True) if _checkpoints(run)]


def check_resumable(folder: Path, args: SftArguments) -> Path:
    """The checkpoint to resume from, proven whole and of this model.

    Args:
        folder: A checkpoint, or a run's folder for its last whole one.

    Raises:
        CheckpointError: It is missing, incomplete or of another model.
    """
    if not folder.is_dir():
        raise CheckpointError(f"--resume_from_checkpoint {folder}: there is no such folder. Look below output/.")
    candidates = [path.resolve() for path in reversed(_checkpoints(folder))] or [folder.resolve()]
    for candidate in candidates:
        missing = what_is_missing(candidate)
        if not missing:
            _check_same_model(candidate, args)
            _check_same_step(candidate, args)
            _check_weights(candidate, args)
            return candidate
        if candidate != candidates[-1]:
            get_logger().warning("%s %s: the one before it is tried.", candidate, missing)
    raise CheckpointError(
        f"{candidates[0]} {what_is_missing(candidates[0])}. Resume from another checkpoint of the run."
    )


def _check_same_step(folder: Path, args: SftArguments) -> None:
    """Refuse what would meet other data than the run would have met, or cannot be divided anew."""
    seal = read_json(folder / SEAL_FILE)
    if not seal:
        return
    ours, theirs = args.step_size(), seal["step_size"]
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
    if strategy == "deepspeed" and world_size() != seal["world_size"]:
        raise CheckpointError(
            f"DeepSpeed divided the state in {folder} among {seal['world_size']} processes, and this run has "
            f"{world_size()}. Resume with as many; DDP and --fsdp resume with any number."
        )
    if world_size() != seal["world_size"]:
        text = "%s processes go on where %s stopped: with the same data in the same order; dropout is drawn anew."
        get_logger().warning(text, world_size(), seal["world_size"])


def check_steps_left(folder: Path, num_steps: int) -> None:
    """Refuse to resume where a run of `num_steps` in all has nothing left to do.

    Raises:
        CheckpointError: The checkpoint is at that step, or beyond.
    """
    done = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    if done >= num_steps:
        raise CheckpointError(
            f"Nothing is left to train: {folder} is at step {done} of {num_steps}. "
            "Raise --max_steps or --num_train_epochs."
        )


def _check_same_model(folder: Path, args: SftArguments) -> None:
    file = folder / ARGS_FILE
    if not file.is_file():
        return
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as err:
        raise CheckpointError(f"{file} cannot be read: {err}. Resume from another checkpoint of the run.") from err
    for name in (
        "model_type",
        "sft_type",
        "template_type",
        "quantization_bit",
        "packing",
        "rope_scaling",
        "rope_factor",
    ):
        ours, theirs = getattr(args, name), saved.get(name)
        if theirs is not None and ours != theirs:
            raise CheckpointError(
                f"{folder} was trained with --{name} {theirs}, and this run has --{name} {ours}. "
                "Resume with the same, or start anew without --resume_from_checkpoint."
            )


def _check_weights(folder: Path, args: SftArguments) -> None:
    names = ["model.safetensors", "model.safetensors.index.json"] if args.sft_type == "full" else [ADAPTER_FILE]
    if not any((folder / name).is_file() for name in names):
        raise CheckpointError(f"{folder} has no {names[0]}. Resume from another checkpoint of the run.")


def link_last_state(checkpoint: Path, run: Path) -> None:
    """Show the last state at the root of the run as well, where users of other tools look; links cost no disk."""
    for file in checkpoint.iterdir():
        if not LAST_STATE.match(file.name):
            continue
        target = run / file.name
        target.unlink(missing_ok=True)
        try:
            os.link(file, target)
        except OSError:
            shutil.copy2(file, target)
