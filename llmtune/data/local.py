"""Split a local file, or a folder of files, into training and validation files.

Names of files and folders give the split, as on the hubs. Files without such a name are training data.
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
    """The files of each part. `folder`: the given path, where it is a folder."""

    train: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    folder: Path | None = None


def local_parts(path: Path) -> LocalParts:
    """Return the parts of a folder, or the one file.

    Raises:
        DataError: No such path, no readable file, or several parts and none of them for training.
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
        get_logger().info(f"{path}: reading its only part, {name}")
    if not train:
        named = "; ".join(f"{name}: {_shown(path, part)}" for name, part in found.items())
        raise DataError(f"The folder {path} has no training files ({named}). Name the files to train on.")
    validation = found.pop("validation", [])
    if validation:
        get_logger().info(f"{path}: for validation: {_shown(path, validation)}")
    for name, part in found.items():
        get_logger().info(f"{path}: not trained on ({name}): {_shown(path, part)}")
    return LocalParts(tuple(train), tuple(validation), path)


def _shown(folder: Path, files: Sequence[Path]) -> str:
    names = [str(file.relative_to(folder)) for file in files]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
