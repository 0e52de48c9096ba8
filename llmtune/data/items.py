"""What stands behind `--dataset`: a key or a path, maybe with how many rows to draw. No rows are read here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtune.data.files import data_files, has_data_extension
from llmtune.data.info import DATASET_MAPPING
from llmtune.errors import UsageError

__all__ = ["DatasetItem", "check_items", "check_source", "expand", "parse_item", "split_items"]

HUB_PREFIXES = ("ms::", "hf::")


@dataclass(frozen=True, slots=True)
class DatasetItem:
    """What stands in `--dataset`. `sample`: rows to draw from the whole source; None for all."""

    source: str
    sample: int | None = None


def parse_item(text: str) -> DatasetItem:
    """Split `key#1000` or `path#1000`; an existing path that holds a `#` is taken as it stands.

    Raises:
        UsageError: A hub data set, or something other than a positive number behind the `#`.
    """
    text = text.strip()
    if text.startswith(HUB_PREFIXES):
        raise UsageError(f"{text}: hub data sets are not there yet; download it and give the local path")
    if not text:
        raise UsageError("An empty data set name. Give a key (llmtune list datasets) or a path.")
    source, mark, number = text.rpartition("#")
    if not mark or expand(text).exists():
        return DatasetItem(text)
    if not source or not number.isascii() or not number.isdigit() or int(number) < 1:
        raise UsageError(f"{text}: behind the # belongs how many rows to draw, 1 or more, as in {source or 'key'}#1000")
    return DatasetItem(source, int(number))


def split_items(names: str | Sequence[str]) -> list[str]:
    """Names as given, with "a,b" taken apart unless it is a path.

    Raises:
        UsageError: No name at all.
    """
    given = [names] if isinstance(names, str) else list(names)
    items: list[str] = []
    for name in given:
        whole = "," not in name or expand(parse_item(name).source if "#" in name else name).exists()
        items += [name] if whole else [part.strip() for part in name.split(",") if part.strip()]
    if not items:
        raise UsageError("No data set. Give a key (llmtune list datasets) or a path: --dataset alpaca-zh data.jsonl")
    return items


def check_items(names: Sequence[str]) -> None:
    """Find typos before anything expensive starts.

    Raises:
        UnknownKeyError: Neither a key nor anything that looks like a path. DataError: A file that is not there.
    """
    if names:
        for item in split_items(names):
            check_source(parse_item(item).source)


def check_source(text: str) -> None:
    """One of the above, without its `#`."""
    if text in DATASET_MAPPING:
        return
    path = expand(text)
    if path.exists() or "/" in text or os.sep in text or has_data_extension(path):
        data_files(path)
    else:
        DATASET_MAPPING[text]  # raises, with the nearest keys


def expand(text: str) -> Path:
    return Path(text).expanduser()
