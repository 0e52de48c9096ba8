"""What a checkpoint from elsewhere may not decide: which code runs here, and which paths of this machine are opened."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmtune.arguments.fields import fits
from llmtune.errors import CheckpointError, UsageError
from llmtune.utils.own import is_own

__all__ = ["PATHS", "WITHOUT", "check_register_file", "check_saved_types", "check_strange_paths"]

PATHS = ("model_id_or_path", "tokenizer_id_or_path", "cache_dir", "dataset", "val_dataset")
"""Arguments that may name a place of this machine. `custom_register_path` names code, and has a rule of its own."""


WITHOUT = " To do without it: --load_args_from_ckpt_dir false."
"""Further advice of commands that have this flag; resuming has not."""


def check_register_file(saved: Mapping[str, Any], given: str | None, place: Path, *, advice: str = "") -> None:
    """Refuse to run Python code that a checkpoint names and this command does not.

    Raises:
        UsageError: With the flag to type for those who trust it.
    """
    path = saved.get("custom_register_path")
    if path is None or given is not None:
        return
    raise UsageError(
        f"{place} was trained with code of its own, {path}, which is not run unasked. If you trust it: "
        f"{_flag('custom_register_path', [path])}.{advice}"
    )


def check_strange_paths(saved: Mapping[str, Any], names: Iterable[str], place: Path) -> None:
    """Refuse paths of this machine that a checkpoint from elsewhere names.

    Args:
        names: The arguments that would be taken over.

    Raises:
        UsageError: With the flag to type for those who mean that path.
    """
    if is_own(saved):
        return
    for name in PATHS:
        values = saved.get(name)
        found = [value for value in (values if isinstance(values, list) else [values]) if _is_path(value)]
        if name in names and found:
            flag = _flag(name, values if isinstance(values, list) else found)
            raise UsageError(
                f"{place} comes from elsewhere, or was changed, and names {found[0]} on this machine, which is not "
                f"opened unasked. If that is what you mean: {flag}."
            )


def check_saved_types(saved: Mapping[str, Any], hints: Mapping[str, Any], names: Iterable[str], place: Path) -> None:
    """Refuse settings of another type than the argument has.

    Raises:
        CheckpointError: With the name, the value, and what to do.
    """
    for name in names:
        value = saved.get(name)
        if value is not None and name in hints and not fits(value, hints[name]):
            raise CheckpointError(
                f"The settings of {place} (sft_args.json) hold {name} {str(value)[:60]!r}, which cannot be meant. "
                f"Give --{name}."
            )


def _is_path(value: Any) -> bool:
    """A place of this machine, whether it is there or not; keys of registries and ids of hubs are none."""
    if not isinstance(value, str):
        return False
    text = value.partition("#")[0]
    return text.startswith(("/", "~", "\\", ".")) or Path(text).exists() or Path(value).exists() or text[1:3] == ":\\"


def _flag(name: str, values: list[Any]) -> str:
    return shlex.join([f"--{name}", *map(str, values)])
