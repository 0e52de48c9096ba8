"""The runs that the training tab shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["LOG", "find_runs", "last_record"]

LOG = "logging.jsonl"
DEPTH = 3
"""Folders below the given one: output/<model>/v<N>-<time>/logging.jsonl."""


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders at or below a folder, the most recently written first."""
    found = [
        file for depth in range(DEPTH + 1) for file in folder.glob("/".join(["*"] * depth + [LOG])) if file.is_file()
    ]
    return [file.parent for file in sorted(found, key=lambda file: file.stat().st_mtime, reverse=True)]


def last_record(log_file: Path) -> dict[str, Any]:
    """Return the last complete line of a log that may be growing; empty where there is none."""
    for line in reversed(log_file.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            return record
    return {}
