"""Checkpoint folders and the settings saved in them, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from llmtune.errors import CheckpointError
from llmtune.utils.files import read_json
from llmtune.utils.logging import get_logger

__all__ = ["checkpoint_kind", "checkpoint_of", "numbered_checkpoints", "read_sft_args", "trained_kind"]


def numbered_checkpoints(run: Path) -> list[Path]:
    """The checkpoint-N of a run folder, ordered by step."""
    numbered = [(int(path.name[11:]), path) for path in run.glob("checkpoint-*") if path.name[11:].isdecimal()]
    return [path for _, path in sorted(numbered) if path.is_dir()]


def checkpoint_of(folder: Path) -> Path:
    """The checkpoint of a folder: itself, or the best (else the last) checkpoint of a run folder."""
    found = numbered_checkpoints(folder) if folder.is_dir() else []
    if not found:
        return folder
    state = read_json(found[-1] / "trainer_state.json")
    named = Path(str(state.get("best_model_checkpoint") or "")).name
    best = next((path for path in found if path.name == named), None)
    chosen = best or found[-1]
    get_logger().info(f"{folder} is a run folder: using its {'best' if best else 'last'} checkpoint, {chosen.name}.")
    return chosen


def checkpoint_kind(folder: Path) -> Literal["lora", "full"]:
    """`lora` for a folder with adapters of any kind, `full` for a folder with full weights.

    Raises:
        CheckpointError: It is missing, or is neither.
    """
    if not folder.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {folder}. Look below output/.")
    if _adapter_config(folder) is not None:
        return "lora"
    if (folder / "config.json").is_file():
        return "full"
    runs = [run for below in ("*/", "*/*/") for run in sorted(folder.glob(below)) if numbered_checkpoints(run)]
    latest = numbered_checkpoints(runs[-1])[-1] if runs else None
    hint = f"Did you mean {latest}?" if latest else "It may be incomplete: use another checkpoint of the run."
    raise CheckpointError(f"{folder} is not a checkpoint: it has neither adapter_config.json nor config.json. {hint}")


def trained_kind(folder: Path) -> str:
    """The `--sft_type` of a checkpoint: `full`, or the kind of its adapters."""
    if checkpoint_kind(folder) == "full":
        return "full"
    file = _adapter_config(folder)
    assert file is not None
    try:
        return str(json.loads(file.read_text(encoding="utf-8")).get("peft_type", "lora")).lower()
    except (OSError, ValueError, AttributeError):
        return "lora"  # what loads it says what is wrong with the file


NEXT = "Give the settings as flags, with --load_args_from_ckpt_dir false."


def _adapter_config(folder: Path) -> Path | None:
    """That of the folder, or of its `default/`, where Swift put adapters until 2024."""
    files = (folder / "adapter_config.json", folder / "default/adapter_config.json")
    return next((file for file in files if file.is_file()), None)


def read_sft_args(folder: Path) -> dict[str, Any]:
    """The settings of the run that wrote a checkpoint, from its folder or the run's.

    Raises:
        CheckpointError: The folder does not exist, or its sft_args.json cannot be read.
    """
    if not folder.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {folder}. Look below output/.")
    for place in (folder, folder.parent):
        file = place / "sft_args.json"
        if file.is_file():
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as err:
                raise CheckpointError(f"{file} cannot be read: {err}. {NEXT}") from err
            if not isinstance(found, dict):
                raise CheckpointError(f"{file} holds no object with the settings of a run. {NEXT}")
            return found
    return {}
