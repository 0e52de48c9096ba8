"""Checkpoints: what completes one, what makes one whole, which one to resume from."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune.arguments.checkpoint_folder import numbered_checkpoints, read_sft_args
from llmtune.arguments.resume import resumed_arguments
from llmtune.errors import CheckpointError
from llmtune.templates.images import images_of
from llmtune.utils.files import read_json, write_json
from llmtune.utils.logging import get_logger
from llmtune.utils.ranks import launch_id, restart_count, world_size

if TYPE_CHECKING:
    from llmtune.arguments.sft import SftArguments

__all__ = [
    "RATES",
    "check_same_data",
    "check_steps_left",
    "complete_checkpoint",
    "find_resumable",
    "last_checkpoint",
    "link_last_state",
    "resume_run",
    "rotate",
    "seal_checkpoint",
    "set_aside_later",
    "what_is_missing",
]

ADAPTER_FILE = "adapter_model.safetensors"
ARGS_FILE = "sft_args.json"
SEAL_FILE = "checkpoint.json"
LAST = "last"
RUN_NAME = re.compile(r"v(\d+)-")
STATE_FILE = "trainer_state.json"
RESUME_FILES = (STATE_FILE, "scheduler.pt")
OPTIMIZER_FILES = ("optimizer.pt", "optimizer_0/*", "global_step*/*optim_states.pt")
RATES = {"learning_rate", "weight_decay", "lr_scheduler_type", "warmup_ratio"}
"""What optimizer and scheduler keep a copy of, which a resumed run would follow."""
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
    if (folder / SEAL_FILE).exists() and _seal(folder) is None:
        return f"has a damaged {SEAL_FILE}"
    names = [name for name in RESUME_FILES if not (folder / name).is_file()]
    if not any(next(folder.glob(pattern), None) for pattern in OPTIMIZER_FILES):
        names.append("optimizer.pt")
    if not any(folder.glob("rng_state*.pth")):
        names.append("rng_state.pth")
    if names:
        return f"lacks {', '.join(names)}: it is incomplete, or was saved with --only_save_model true"
    if not isinstance(read_json(folder / STATE_FILE).get("global_step"), int):
        return f"has a damaged {STATE_FILE}"
    for name, size in (_seal(folder) or {"files": {}})["files"].items():
        file = folder / name
        if not file.is_file():
            return f"lacks {name}"
        if file.stat().st_size != size:
            return f"has {file.stat().st_size:,} bytes of {name}, which had {size:,}"
    return ""


def _seal(folder: Path) -> dict[str, Any] | None:
    """What checkpoint.json says; None where there is none, or it is damaged."""
    found = read_json(folder / SEAL_FILE)
    kinds = {"world_size": int, "step_size": int, "strategy": str, "files": dict}
    if not all(isinstance(found.get(name), kind) for name, kind in kinds.items()):
        return None
    return found if all(isinstance(size, int) for size in found["files"].values()) else None


def last_checkpoint(run: Path) -> Path | None:
    """The checkpoint-N of a run with the highest N."""
    found = numbered_checkpoints(run)
    return found[-1] if found else None


def rotate(run: Path, keep: int | None, *, best: Path | None, newest: Path) -> None:
    """Delete checkpoints until `keep` are left, those with the lowest steps first; the best and the newest stay.

    By step number alone: the clocks of machines that share a disk differ, and copying changes every time.
    """
    found = numbered_checkpoints(run)
    if keep is None or keep < 1:
        return
    needed = {path.resolve() for path in (best, newest) if path is not None}
    too_many = len(found) - max(keep, len(needed))
    for path in [path for path in found if path.resolve() not in needed][: max(too_many, 0)]:
        shutil.rmtree(path, ignore_errors=True)


def set_aside_later(checkpoint: Path) -> None:
    """Rename the checkpoints behind the one that a run resumes from: its steps are going to be trained again."""
    done = read_json(checkpoint / STATE_FILE)["global_step"]  # whatever its folder is called
    later = [path for path in numbered_checkpoints(checkpoint.parent) if int(path.name[11:]) > done]
    for path in later:
        aside = path.with_name(f"superseded-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    if later:
        names = ", ".join(path.name for path in later)
        text = "Resuming from %s: %s, trained after it, set aside as superseded-checkpoint-N."
        get_logger().warning(text, checkpoint.name, names)


def resume_run(args: SftArguments) -> tuple[SftArguments, Path | None]:
    """The arguments of the run, and the checkpoint that it resumes from; None where it begins.

    What is not given comes from the checkpoint, and what is given must fit it: see `llmtune.arguments.resume`.

    Raises:
        CheckpointError: It is missing, incomplete or of another run.
    """
    checkpoint = find_resumable(args)
    if checkpoint is None:
        return args, None
    saved = read_sft_args(checkpoint)
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
    if restart_count() and (own := [run for run in runs if read_json(run / ARGS_FILE).get("_launch") == launch_id()]):
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
    seal = _seal(folder)
    if seal is None:  # of a version, or a tool, that wrote none
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
    done = read_json(folder / STATE_FILE)["global_step"]
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
    theirs = read_sft_args(folder).get("_data")
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
