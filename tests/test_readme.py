"""Every command and every piece of Python that the documentation shows is one that llmtune takes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from .shown_commands import ROOT, blocks, is_taken, llmtune_lines

PAGES = [ROOT / "README.md", ROOT / "README_CN.md", *sorted((ROOT / "examples").rglob("README.md"))]
SCRIPTS = sorted((ROOT / "examples").rglob("*.sh"))


def _pages_and_lines() -> list[tuple[Path, str]]:
    from_pages = [(page, line) for page in PAGES for block in blocks(page, "bash") for line in llmtune_lines(block)]
    scripts = [(script, line) for script in SCRIPTS for line in llmtune_lines(script.read_text(encoding="utf-8"))]
    return from_pages + scripts


LINES = _pages_and_lines()


def test_documentation_is_found() -> None:
    assert len(PAGES) == 8
    assert len(SCRIPTS) >= 4  # examples may be added; none may be overlooked
    assert len(LINES) >= 41


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda value: value.name if isinstance(value, Path) else "")
def test_commands_parse(page: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_taken(line, tmp_path, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


def test_readme_has_python() -> None:
    assert [len(blocks(page, "python")) for page in PAGES[:2]] == [2, 2]


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_a_readme_is_short(page: Path) -> None:
    """The catalogue is in docs/registries, the rest in docs/."""
    assert page.stat().st_size <= 12_000


def test_both_readmes_show_the_same_commands() -> None:
    english, chinese = ([line for block in blocks(page, "bash") for line in llmtune_lines(block)] for page in PAGES[:2])
    assert english == chinese


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.relative_to(ROOT)))
def test_scripts_begin_with_what_they_need(script: Path) -> None:
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[1].startswith("# ")
    assert os.access(script, os.X_OK)
