"""The site builds without a warning and without a network, and its pages ask no other host for anything."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..waiting import SECONDS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ASKED = re.compile(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"?(?:https?:)?//[^\s\">]+")


def without_network() -> list[str]:
    """Words that run a program where no host can be reached, if this machine has such."""
    words = ["unshare", "--map-root-user", "--net"]
    can = shutil.which(words[0]) and subprocess.run([*words, "true"], capture_output=True).returncode == 0
    return words if can else []


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    words = [*without_network(), sys.executable, "-m", "zensical", "build", "--strict"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=SECONDS)


def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("zensical")
    done = build(tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) == len(list((ROOT / "docs").rglob("*.md"))) + 1  # 404.html
    for page in pages:
        assert ASKED.findall(page.read_text(encoding="utf-8")) == [], page
    assert (tmp_path / "site/images/web-chat.png").is_file()
    assert not list((tmp_path / "site").rglob("*.py"))
    broken = tmp_path / "docs/quickstart.md"
    broken.write_text(broken.read_text(encoding="utf-8") + "\n[nowhere](nowhere.md)\n", encoding="utf-8")
    shutil.rmtree(tmp_path / "site")
    words = [sys.executable, "-m", "zensical", "build", "--strict"]
    assert subprocess.run(words, cwd=tmp_path, capture_output=True).returncode != 0, "a broken link is an error"
