"""Checkpoint folders: the only reader and writer of their metadata. No torch.

output/<model>/v0-<time>/          a run folder
sft_args.json                  the settings of the run, sealed if this user's own run wrote them
checkpoint-50/                 a checkpoint, by its step
adapter_config.json        of an adapter; in default/, where Swift put adapters until 2024
adapter_model.safetensors
config.json                of full weights
sft_args.json              the same settings
trainer_state.json         step, best checkpoint, log history
checkpoint.json            written last: the files and their sizes, how the steps were divided
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from llmtune.errors import CheckpointError
from llmtune.utils.files import grant_usual_access, read_json, write_json
from llmtune.utils.logging import get_logger
from llmtune.utils.seal import with_changes

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
SETTINGS_FILE = "sft_args.json"
STATE_FILE = "trainer_state.json"
SEAL_FILE = "checkpoint.json"
PREFIX = "checkpoint-"
RESUME_FILES = (STATE_FILE, "scheduler.pt")
OPTIMIZER_FILES = ("optimizer.pt", "optimizer_0/*", "global_step*/*optim_states.pt")
LAST_STATE = re.compile(
    r"(adapter_config\.json|adapter_model\..+|config\.json|generation_config\.json|model.*\.safetensors(\.index\.json)?"
    r"|tokenizer.*|vocab\..+|merges\.txt|special_tokens_map\.json|added_tokens\.json|chat_template\.jinja"
    r"|(video_)?(pre)?processor_config\.json"
    r"|trainer_state\.json|training_args\.bin|README\.md)$"
)
NEXT = "Give the settings as flags, with --load_args_from_ckpt_dir false."


# Checkpoints of a run


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / f"{PREFIX}{step}"


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint-N, from its name."""
    return int(folder.name.removeprefix(PREFIX))


def numbered_checkpoints(run: Path) -> list[Path]:
    """The checkpoint-N of a run folder, ordered by step."""
    folders = [path for path in run.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted((path for path in folders if path.is_dir()), key=step_of)


def last_checkpoint(run: Path) -> Path | None:
    """Return the checkpoint-N of a run with the highest N."""
    return next(reversed(numbered_checkpoints(run)), None)


def checkpoint_of(folder: Path) -> Path:
    """The checkpoint of a folder: itself, or the best (else the last) checkpoint of a run folder."""
    checkpoints = numbered_checkpoints(folder) if folder.is_dir() else []
    if not checkpoints:
        return folder
    named = Path(str(read_state(checkpoints[-1]).get("best_model_checkpoint") or "")).name
    best = next((path for path in checkpoints if path.name == named), None)
    chosen = best or checkpoints[-1]
    get_logger().info(f"{folder} is a run folder: using its {'best' if best else 'last'} checkpoint, {chosen.name}.")
    return chosen


def rotate(run: Path, keep: int | None, *, best: Path | None, newest: Path) -> None:
    """Delete checkpoints until `keep` are left, lowest steps first; the best and the newest are kept.

    By step number alone: the clocks of machines that share a disk differ, and copying changes every time.
    """
    checkpoints = numbered_checkpoints(run)
    if keep is None or keep < 1:
        return
    needed = {path.resolve() for path in (best, newest) if path is not None}
    too_many = len(checkpoints) - max(keep, len(needed))
    for path in [path for path in checkpoints if path.resolve() not in needed][: max(too_many, 0)]:
        shutil.rmtree(path, ignore_errors=True)


def set_aside_later(checkpoint: Path) -> None:
    """Rename checkpoints later than the one that a run resumes from: their steps will be trained again."""
    done = read_state(checkpoint)["global_step"]  # whatever its folder is called
    later = [path for path in numbered_checkpoints(checkpoint.parent) if step_of(path) > done]
    for path in later:
        aside = path.with_name(f"superseded-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    if later:
        names = ", ".join(path.name for path in later)
        text = "Resuming from %s: %s, trained after it, set aside as superseded-checkpoint-N."
        get_logger().warning(text, checkpoint.name, names)


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


# Weights


def checkpoint_kind(folder: Path) -> Literal["lora", "full"]:
    """`lora` for a folder with adapters of any kind, `full` for a folder with full weights.

    Raises:
        CheckpointError: It is missing, or is neither.
    """
    if not folder.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {folder}. Look below output/.")
    if (adapter_folder(folder) / ADAPTER_CONFIG).is_file():
        return "lora"
    if (folder / "config.json").is_file():
        return "full"
    runs = [run for below in ("*/", "*/*/") for run in sorted(folder.glob(below)) if numbered_checkpoints(run)]
    latest = last_checkpoint(runs[-1]) if runs else None
    hint = f"Did you mean {latest}?" if latest else "It may be incomplete: use another checkpoint of the run."
    raise CheckpointError(f"{folder} is not a checkpoint: it has neither {ADAPTER_CONFIG} nor config.json. {hint}")


def adapter_kind(folder: Path) -> str:
    """The `--sft_type` of a checkpoint: `full`, or the kind of its adapters."""
    if checkpoint_kind(folder) == "full":
        return "full"
    return str(read_adapter_config(folder).get("peft_type", "lora")).lower()


def is_reward(folder: Path) -> bool:
    """Whether a checkpoint is a reward model: its head makes one score of a sequence, and no logits.

    Raises:
        CheckpointError: The folder is no checkpoint.
    """
    if checkpoint_kind(folder) == "lora":
        return read_adapter_config(folder).get("task_type") == "SEQ_CLS"
    classes = read_json(folder / "config.json").get("architectures")
    return any(str(name).endswith("ForSequenceClassification") for name in classes or ())


def adapter_folder(folder: Path) -> Path:
    """Where the files of an adapter are: the folder, or its `default/`, where Swift put adapters until 2024."""
    inner = folder / "default"
    return inner if not (folder / ADAPTER_CONFIG).is_file() and (inner / ADAPTER_CONFIG).is_file() else folder


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """PEFT's configuration of an adapter; empty where there is none, or it is damaged: what loads it says so."""
    return read_json(adapter_folder(folder) / ADAPTER_CONFIG)


def base_of(folder: Path) -> str | None:
    """The base model that an adapter names: a hub id, or a path of the machine that wrote it."""
    base = read_adapter_config(folder).get("base_model_name_or_path")
    return None if base is None else str(base)


# Settings and state of the run


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run that wrote a checkpoint, from its folder or the run's; empty where it has none.

    Raises:
        CheckpointError: The folder does not exist, or its settings cannot be read.
    """
    if not folder.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {folder}. Look below output/.")
    file = next((place / SETTINGS_FILE for place in (folder, folder.parent) if has_settings(place)), None)
    if file is None:
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise CheckpointError(f"{file} cannot be read: {err}. {NEXT}") from err
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file} holds no object with the settings of a run. {NEXT}")
    return settings


def saved_settings(folder: Path) -> dict[str, Any]:
    """The settings in this very folder; empty where it has none, or they are damaged."""
    return read_json(folder / SETTINGS_FILE)


def has_settings(folder: Path) -> bool:
    return (folder / SETTINGS_FILE).is_file()


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    write_json(folder / SETTINGS_FILE, settings)


def copy_settings(source: Path, target: Path, **changes: Any) -> None:
    """Write the settings of one folder into another, with what was made of it; they stay this user's own if they were.

    A source without settings leaves none.
    """
    if settings := saved_settings(source):
        write_settings(target, with_changes(settings, **changes))


def stage_of(folder: Path) -> str:
    """The stage that wrote a checkpoint; `sft` before version 0.5, which knew no other."""
    return str(read_settings(folder).get("_stage", "sft"))


def read_state(folder: Path) -> dict[str, Any]:
    """Trainer's state: `global_step`, `best_model_checkpoint`, `log_history`; empty where there is none."""
    return read_json(folder / STATE_FILE)


# Whole or not


def seal_checkpoint(folder: Path, *, world_size: int, step_size: int, strategy: str) -> None:
    """Write down what a whole checkpoint consists of, as its last file, and let others read it by the umask.

    Args:
        world_size: Processes of the run. step_size: Samples per optimizer step, over all of them.
        strategy: What shards the optimizer's state: "", fsdp or deepspeed.
    """
    grant_usual_access(folder)
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    record = {"world_size": world_size, "step_size": step_size, "strategy": strategy, "files": sizes}
    write_json(folder / SEAL_FILE, record)


def read_seal(folder: Path) -> dict[str, Any] | None:
    """Return the record of `seal_checkpoint`; None where it is missing or damaged."""
    seal = read_json(folder / SEAL_FILE)
    kinds = {"world_size": int, "step_size": int, "strategy": str, "files": dict}
    if not all(isinstance(seal.get(name), kind) for name, kind in kinds.items()):
        return None
    return seal if all(isinstance(size, int) for size in seal["files"].values()) else None


def correct_size(file: Path) -> None:
    """Note the size of a file that was written anew in the seal of its folder."""
    seal = read_json(file.with_name(SEAL_FILE))
    if file.name in seal.get("files", {}):
        seal["files"][file.name] = file.stat().st_size
        write_json(file.with_name(SEAL_FILE), seal)


def what_is_missing(folder: Path) -> str:
    """Why a checkpoint cannot be resumed from; "" where it can."""
    seal = read_seal(folder)
    if (folder / SEAL_FILE).exists() and seal is None:
        return f"has a damaged {SEAL_FILE}"
    names = [name for name in RESUME_FILES if not (folder / name).is_file()]
    if not any(next(folder.glob(pattern), None) for pattern in OPTIMIZER_FILES):
        names.append("optimizer.pt")
    if not any(folder.glob("rng_state*.pth")):
        names.append("rng_state.pth")
    if names:
        return f"lacks {', '.join(names)}: it is incomplete, or was saved with --only_save_model true"
    if not isinstance(read_state(folder).get("global_step"), int):
        return f"has a damaged {STATE_FILE}"
    for name, size in (seal or {"files": {}})["files"].items():
        file = folder / name
        if not file.is_file():
            return f"lacks {name}"
        if file.stat().st_size != size:
            return f"has {file.stat().st_size:,} bytes of {name}, which had {size:,}"
    return ""
