"""A file, or a folder of files, on this machine -> what is trained on and what is for validation.

Names of files and folders say the split, as they do on the hubs. What has no such name is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtune.data.files import data_files, extension_of
from llmtune.data.snapshot import part_of
from llmtune.errors import DataError
from llmtune.utils.logging import get_logger

__all__ = ["LocalParts", "local_parts"]


@dataclass(frozen=True, slots=True)
class LocalParts:
    """The files of each part. `folder`: what was given, where it is one."""

    train: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    folder: Path | None = None


def local_parts(path: Path) -> LocalParts:
    """The parts of a folder, or the one file.

    Raises:
        DataError: Nothing is there, nothing that can be read, or several parts and none of them to train on.
    """
    files = data_files(path)
    if not path.is_dir():
        return LocalParts(tuple(files))
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(part_of(file.relative_to(path)), []).append(file)
    unnamed = found.pop("", [])
    if "train" in found and not any(extension_of(file) == ".txt" for file in found["train"]):
        notes = [file for file in unnamed if extension_of(file) == ".txt"]  # a licence, a vocabulary
        unnamed = [file for file in unnamed if file not in notes]
        found |= {"unnamed text": notes} if notes else {}
    train = sorted([*found.pop("train", []), *unnamed])
    if not train and len(found) == 1:
        name, train = found.popitem()
        get_logger().info(f"{path}: its only part is called {name}; that is what is read")
    if not train:
        named = "; ".join(f"{name}: {_shown(path, part)}" for name, part in found.items())
        raise DataError(f"The folder {path} holds nothing to train on ({named}). Give the files that you mean.")
    validation = found.pop("validation", [])
    if validation:
        get_logger().info(f"{path}: for validation: {_shown(path, validation)}")
    for name, part in found.items():
        get_logger().info(f"{path}: not trained on ({name}): {_shown(path, part)}")
    return LocalParts(tuple(train), tuple(validation), path)


def _shown(folder: Path, files: Sequence[Path]) -> str:
    names = [str(file.relative_to(folder)) for file in files]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
