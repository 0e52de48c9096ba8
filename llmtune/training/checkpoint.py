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

if TYPE_CHECKING:
    from llmtune.arguments.sft import SftArguments

__all__ = ["check_resumable", "check_steps_left", "complete_checkpoint", "last_checkpoint", "link_last_state"]

ADAPTER_FILE = "adapter_model.safetensors"
RESUME_FILES = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth")
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


def last_checkpoint(run: Path) -> Path | None:
    """The checkpoint-N of a run with the highest N."""
    found = [(int(path.name.split("-")[1]), path) for path in run.glob("checkpoint-*") if path.name[11:].isdigit()]
    return max(found)[1] if found else None


def check_resumable(folder: Path, args: SftArguments) -> Path:
    """The checkpoint to resume from, proven whole and of this model.

    Args:
        folder: A checkpoint, or a run's folder for its last one.

    Raises:
        CheckpointError: It is missing, incomplete or of another model.
    """
    if not folder.is_dir():
        raise CheckpointError(f"--resume_from_checkpoint {folder}: there is no such folder. Look below output/.")
    folder = (last_checkpoint(folder) or folder).resolve()
    missing = [name for name in RESUME_FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing)}: it is incomplete, or was saved with --only_save_model true. "
            "Resume from another checkpoint of the run."
        )
    _check_same_model(folder, args)
    _check_weights(folder, args)
    return folder


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
    file = folder / "sft_args.json"
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
