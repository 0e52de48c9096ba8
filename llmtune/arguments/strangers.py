"""Checkpoints from elsewhere may not run code here or open local paths."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmtune.arguments.fields import fits
from llmtune.errors import CheckpointError, UsageError
from llmtune.utils.seal import is_own

__all__ = ["PATHS", "WITHOUT", "check_register_file", "check_saved_types", "check_strange_paths"]

PATHS = ("model_id_or_path", "tokenizer_id_or_path", "cache_dir", "dataset", "val_dataset")
"""Arguments that may be local paths. `custom_register_path` names code, and has its own rule."""


WITHOUT = " To ignore the saved settings: --load_args_from_ckpt_dir false."
"""Additional advice for commands that have this flag; resuming does not."""


def check_register_file(saved: Mapping[str, Any], given: str | None, place: Path, *, advice: str = "") -> None:
    """Refuse to run Python code that a checkpoint names and this command does not.

    Raises:
        UsageError: With the flag to add if you trust it.
    """
    path = saved.get("custom_register_path")
    if path is None or given is not None:
        return
    raise UsageError(
        f"{place} was trained with custom code, {path}, which is not run unless you ask for it. If you trust it: "
        f"{_flag('custom_register_path', [path])}.{advice}"
    )


def check_strange_paths(saved: Mapping[str, Any], names: Iterable[str], place: Path) -> None:
    """Refuse local paths that a checkpoint from elsewhere names.

    Args:
        names: The arguments that would be read from the checkpoint.

    Raises:
        UsageError: With the flag to add if that path is meant.
    """
    if is_own(saved):
        return
    for name in PATHS:
        values = saved.get(name)
        found = [value for value in (values if isinstance(values, list) else [values]) if _is_path(value)]
        if name in names and found:
            flag = _flag(name, values if isinstance(values, list) else found)
            raise UsageError(
                f"{place} comes from elsewhere, or was modified, and names the local path {found[0]}, which is not "
                f"opened unless you ask for it. If you mean that path: {flag}."
            )


def check_saved_types(saved: Mapping[str, Any], hints: Mapping[str, Any], names: Iterable[str], place: Path) -> None:
    """Refuse saved settings of the wrong type.

    Raises:
        CheckpointError: With the name, the value, and what to do.
    """
    for name in names:
        value = saved.get(name)
        if value is not None and name in hints and not fits(value, hints[name]):
            raise CheckpointError(
                f"sft_args.json of {place} has an invalid value of {name}: {str(value)[:60]!r}. Give --{name}."
            )


def _is_path(value: Any) -> bool:
    """Whether a value is a local path, existing or not, rather than a registry key or hub id."""
    if not isinstance(value, str):
        return False
    text = value.partition("#")[0]
    return text.startswith(("/", "~", "\\", ".")) or Path(text).exists() or Path(value).exists() or text[1:3] == ":\\"


def _flag(name: str, values: list[Any]) -> str:
    return shlex.join([f"--{name}", *map(str, values)])
