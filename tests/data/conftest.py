"""A hub without a network: folders laid out as the repositories are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest


class Hub:
    """Stands in the place of `fetch_dataset`: hands out folders, remembers what it was asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[tuple[str, bool]] = []
        self.options: dict[str, Any] = {}

    def folder(self, dataset_id: str, *, use_hf: bool = False) -> Path:
        folder = self.root / ("hf" if use_hf else "ms") / dataset_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def fetch(self, dataset_id: str, *, use_hf: bool = False, **options: Any) -> Path:
        self.asked.append((dataset_id, use_hf))
        self.options = options
        folder = self.folder(dataset_id, use_hf=use_hf)
        assert any(folder.iterdir()), f"nothing was laid out for {dataset_id}"
        return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    for name in ("LLMTUNE_USE_HF", "USE_HF"):
        monkeypatch.delenv(name, raising=False)
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr("llmtune.hub.fetch.fetch_dataset", made.fetch)
    return made


def _write_lines(file: Path, rows: Sequence[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")


@pytest.fixture
def write_lines() -> Callable[[Path, Sequence[Any]], None]:
    """Write rows as JSON lines; a text is written as it stands."""
    return _write_lines
