"""What a checkpoint folder is, told from its file names: no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from llmtune.errors import CheckpointError

__all__ = ["checkpoint_kind", "read_sft_args", "trained_kind"]


def checkpoint_kind(folder: Path) -> Literal["lora", "full"]:
    """`lora` for a folder with adapters of whatever kind, `full` for a folder with all the weights.

    Raises:
        CheckpointError: It is missing, or is neither.
    """
    if not folder.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {folder}. Runs print theirs; look below output/.")
    if _adapter_config(folder) is not None:
        return "lora"
    if (folder / "config.json").is_file():
        return "full"
    inside = [path for below in ("", "*/", "*/*/") for path in folder.glob(f"{below}checkpoint-*") if path.is_dir()]
    latest = max(inside, key=lambda path: path.stat().st_mtime, default=None)
    hint = f"Did you mean {latest}?" if latest else "It may be incomplete: use another one of the run."
    raise CheckpointError(f"{folder} is no checkpoint: it has neither adapter_config.json nor config.json. {hint}")


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
        raise CheckpointError(f"There is no checkpoint folder {folder}. Runs print theirs; look below output/.")
    for place in (folder, folder.parent):
        file = place / "sft_args.json"
        if file.is_file():
            try:
                return dict(json.loads(file.read_text(encoding="utf-8")))
            except (OSError, ValueError) as err:
                raise CheckpointError(f"{file} cannot be read: {err}. Give the settings as flags.") from err
    return {}
