"""Cache of canonical rows on disk, keyed by a hash of their inputs; damaged entries are rebuilt."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune.data.canonical import FORMATS_VERSION
from llmtune.errors import OutputError
from llmtune.utils.atomic import is_whole, publish_over, seal_of, sweep, temporary_folder
from llmtune.utils.cache import cache_root
from llmtune.utils.files import read_json, write_json

if TYPE_CHECKING:
    import datasets

__all__ = ["REPORT_FILE", "ROWS_FILE", "cached_report", "is_damaged", "open_cached", "row_folder", "store"]

ROWS_FILE, REPORT_FILE, SEAL_FILE = "rows.arrow", "report.json", "seal.json"


def store(fill: Callable[[Path], str]) -> str:
    """Let `fill` write rows and report into a temporary folder and return their cache key; publish them under it.

    Safe against other processes that write the same key: each file replaces an equal one atomically, and readers
    keep the old one open.
    """
    root = cache_root() / "rows"
    try:
        root.mkdir(parents=True, exist_ok=True)
        sweep(root, is_ours=True)
        with temporary_folder(root / "writing") as temporary:
            key = fill(temporary)
            seal = {name: seal_of(temporary / name) for name in (ROWS_FILE, REPORT_FILE)}
            write_json(temporary / SEAL_FILE, seal)
            publish_over(temporary, row_folder(key))
    except OSError as err:
        reason = err.strerror or err
        raise OutputError(f"Cannot write into {root} ({reason}). Set LLMTUNE_CACHE to another folder.") from err
    return key


def cached_report(key: str) -> dict[str, Any] | None:
    """Return the report of cached rows; None where they are missing or damaged."""
    folder = row_folder(key)
    seal = read_json(folder / SEAL_FILE)
    if not all(is_whole(folder / name, seal.get(name)) for name in (REPORT_FILE, ROWS_FILE)):
        return None
    value: dict[str, Any] = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    return value


def is_damaged(key: str) -> bool:
    """Return whether an entry exists that `cached_report` rejects."""
    return os.path.lexists(row_folder(key)) and cached_report(key) is None


def open_cached(key: str) -> datasets.Dataset:
    """Open a cached table memory-mapped; the key is its fingerprint, the same in every process."""
    import datasets

    dataset = datasets.Dataset.from_file(str(row_folder(key) / ROWS_FILE))
    dataset._fingerprint = key
    return dataset


def row_folder(key: str) -> Path:
    """Return the cache folder of a key.

    The version that read the rows is not part of the key, which seeds the sampling of rows: a run resumed by a newer
    llmtune samples the same ones.
    """
    return cache_root() / "rows" / f"{key}-{FORMATS_VERSION}"
