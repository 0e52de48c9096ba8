"""Parse items of `--dataset`: a key, a path or a repository, optionally with a number of rows. Nothing is read."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtune.data.files import data_files, exists, extension_of, has_data_extension, part_of
from llmtune.data.info import DATASET_MAPPING
from llmtune.errors import DataError, UsageError
from llmtune.utils.logging import get_logger

HUB_PREFIXES = ("ms::", "hf::")
HUB_SOURCE = re.compile(r"(ms|hf)::([\w.-]+(?:/[\w.-]+)?)(?::([^:#]+))?")


@dataclass(frozen=True, slots=True)
class DatasetItem:
    """An item of `--dataset`. `sample`: rows to draw from the whole source; None for all."""

    source: str
    sample: int | None = None


@dataclass(frozen=True, slots=True)
class HubItem:
    """A repository that is not in the catalogue. `hub`: `ms` or `hf`; `subset`: None for its default."""

    hub: str
    dataset_id: str
    subset: str | None = None


def is_hub_source(text: str) -> bool:
    return text.startswith(HUB_PREFIXES)


def parse_hub_source(text: str) -> HubItem:
    """Parse `ms::org/name:subset`.

    Raises:
        UsageError: It has another form. Only Hugging Face has names without an organisation.
    """
    match = HUB_SOURCE.fullmatch(text)
    if match is None or (match[1] == "ms" and "/" not in match[2]):
        prefix = text[:4]
        raise UsageError(f"{text}: expected {prefix}org/name or {prefix}org/name:subset, with #1000 to draw 1,000 rows")
    return HubItem(match[1], match[2], match[3])


def parse_item(text: str) -> DatasetItem:
    """Split `key#1000`, `path#1000` or `ms::org/name#1000`; an existing path that holds a `#` is taken as it stands.

    Raises:
        UsageError: Something other than a positive number after the `#`.
    """
    text = text.strip()
    if not text:
        raise UsageError("An empty dataset name. Give a key (llmtune list datasets) or a path.")
    source, mark, number = text.rpartition("#")
    if not mark or exists(expand(text)):
        return DatasetItem(text)
    if not source or not number.isascii() or not number.isdigit() or int(number) < 1:
        raise UsageError(
            f"{text}: after the # comes the number of rows to draw, 1 or more, as in {source or 'key'}#1000"
        )
    return DatasetItem(source, int(number))


def split_items(names: str | Sequence[str]) -> list[str]:
    """Return the names, with "a,b" split unless it is a path.

    Raises:
        UsageError: No name at all.
    """
    given = [names] if isinstance(names, str) else list(names)
    items: list[str] = []
    for name in given:
        whole = "," not in name or exists(expand(name)) or ("#" in name and exists(expand(name.rpartition("#")[0])))
        items += [name] if whole else [part.strip() for part in name.split(",") if part.strip()]
    if not items:
        raise UsageError("No dataset. Give a key (llmtune list datasets) or a path: --dataset alpaca-zh data.jsonl")
    return items


def check_items(names: Sequence[str]) -> None:
    """Find typos before anything expensive starts.

    Raises:
        UnknownKeyError: Neither a key nor anything that looks like a path. DataError: A file that is not there.
        UsageError: A malformed item.
    """
    if names:
        for item in split_items(names):
            check_source(parse_item(item).source)


def check_source(text: str) -> None:
    """Check one item without its `#`. No hub is asked."""
    if is_hub_source(text):
        parse_hub_source(text)
        return
    if text in DATASET_MAPPING:
        return
    path = expand(text)
    if exists(path) or "/" in text or os.sep in text or has_data_extension(path):
        data_files(path)
    else:
        DATASET_MAPPING[text]  # raises, with the nearest keys


def expand(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # `~name` of a user that does not exist
        return Path(text)


# Split a local file, or a folder of files, into training and validation files


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
