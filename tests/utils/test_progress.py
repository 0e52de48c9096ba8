"""Bars are drawn on a terminal and in a notebook, and made in one place."""

from __future__ import annotations

import ast
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmtune.utils.progress import draws_bars, in_notebook, progress_bar

ROOT = Path(__file__).resolve().parents[2]


def test_only_one_file_makes_bars() -> None:
    makers = [
        str(file.relative_to(ROOT))
        for file in (ROOT / "llmtune").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tqdm")
        or (isinstance(node, ast.Import) and any(name.name.split(".")[0] == "tqdm" for name in node.names))
    ]
    assert set(makers) == {"llmtune/utils/progress.py"}


def test_a_pipe_has_no_bar_and_a_kernel_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not draws_bars()
    assert progress_bar(range(3)).disable
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1)))
    assert in_notebook()
    assert draws_bars()
    with progress_bar(total=3) as bar:
        assert not bar.disable
    assert progress_bar(total=3, quiet=True).disable
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: object()))
    assert not in_notebook(), "IPython in a terminal is no notebook"
