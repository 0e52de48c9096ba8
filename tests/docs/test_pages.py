"""Every block of code in docs/ is one that its reader can use: commands parse, Python compiles, data is data."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llmtune.cli.main import COMMANDS

from ..shown_commands import ROOT, blocks, is_taken, llmtune_lines
from ..waiting import SECONDS

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LINES = [(page, line) for page in PAGES for block in blocks(page, "bash") for line in llmtune_lines(block)]


def name(value: object) -> str:
    return str(value.relative_to(DOCS)) if isinstance(value, Path) else ""


def test_pages_are_found() -> None:
    """Else the tests below would be of nothing."""
    assert len(PAGES) >= 60
    assert len(LINES) >= 110
    assert {page.stem for page in (DOCS / "commands").iterdir()} == {*COMMANDS, "index"}


@pytest.mark.parametrize(("page", "line"), LINES, ids=name)
def test_commands_parse(page: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_taken(line, tmp_path, monkeypatch)


HOWTOS = sorted((DOCS / "howto").glob("*.md"))


@pytest.mark.parametrize("page", HOWTOS, ids=name)
def test_each_howto_has_its_chinese_twin_with_the_same_code(page: Path) -> None:
    """Comments of a block may be translated."""
    twin = DOCS / "zh" / ("howto.md" if page.stem == "index" else page.name)
    own, theirs = (
        [re.sub(r" +# .*$", "", block, flags=re.M) for block in re.findall(r"^```\w*\n.*?^```", text, re.M | re.S)]
        for text in (file.read_text(encoding="utf-8") for file in (page, twin))
    )
    assert own == theirs
    prose = re.sub(r"^```.*?^```", "", twin.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert len(re.findall("[\u4e00-\u9fff]", prose)) > 60
    headings = [
        len(re.findall(r"^#+ ", re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.M | re.S), re.M))
        for file in (page, twin)
    ]
    assert headings[0] == headings[1]


def test_the_language_switch_is_on_top() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    links = re.findall(r"^      link: (\S+)\.html$", site.partition("alternate:")[2], re.M)
    assert links == ["index", "zh/index"]
    assert all((DOCS / f"{link}.md").is_file() for link in links)


def summaries() -> list[tuple[Path, str]]:
    """The commands at the head of each command's page, as --help shows them; not those that are cut short."""
    found = []
    for folder in ("commands", "zh/commands"):
        for page in sorted((DOCS / folder).glob("*.md")):
            for line in llmtune_lines("\n".join(blocks(page, "text"))):
                command = re.split(r" {2,}\(|\.\.\. {2,}", line)[0]
                if " ... " not in line.replace("_dir ... ", "") and "=..." not in command.split("llmtune")[1]:
                    found.append((page, command.strip()))
    return found


@pytest.mark.parametrize(("page", "line"), summaries(), ids=name)
def test_commands_of_summaries_parse(page: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_taken(line, tmp_path, monkeypatch)


def test_other_shell_lines_name_what_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = set(re.findall(r'^ {4,8}"(\w+)": \[', (ROOT / "setup.py").read_text(encoding="utf-8"), re.M))
    seen = set()
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = [word for word in shlex.split(line, comments=True) if not re.match(r"\w+=", word)]
                if not words or words[0] == "llmtune":
                    continue
                seen.add(words[0])
                if words[0] == "make":
                    assert f"\n{words[1]}:" in makefile, line
                elif words[0] == "pip":
                    assert set(re.search(r"\[(.+)\]", line)[1].split(",")) <= extras, line
                elif words[0] in ("python", "bash"):
                    assert (ROOT / words[1]).is_file(), line
                elif words[0] == "curl":
                    assert json.loads(words[words.index("-d") + 1])["messages"], line
                else:
                    assert words == [".", ".venv/bin/activate"], line
    assert seen == {"make", "pip", "python", "bash", "curl", "."}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_other_blocks_are_what_they_say(page: Path) -> None:
    known = {"bash", "text", "python", "json", "yaml"}
    assert set(re.findall(r"^```(\w*)\n", page.read_text(encoding="utf-8"), re.M)) <= known | {""}
    assert len(re.findall("^```", page.read_text(encoding="utf-8"), re.M)) == 2 * sum(
        len(blocks(page, language)) for language in known
    )
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")
    for block in blocks(page, "json"):
        json.loads(block)
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block)


REGISTERING = [(page, block) for page in PAGES for block in blocks(page, "python") if "register_" in block]


@pytest.mark.medium
@pytest.mark.parametrize(("page", "block"), REGISTERING, ids=name)
def test_registrations_run(page: Path, block: str, tmp_path: Path) -> None:
    """In a process of its own: registries are for everyone."""
    (tmp_path / "block.py").write_text(block, encoding="utf-8")
    if "register_tool_format" in block:
        block += "\ncall = ToolCall('sky', {'place': 'Bergen'})\nassert parse(write_calls('Let me see.', [call], None)"
        block += "[0].content) == ParsedAnswer('Let me see.', (call,))\n"
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).is_file()] == []


def test_nothing_of_the_machine_is_told() -> None:
    for page in PAGES:
        found = re.findall(r"/(?:work|root|tmp|home)/\S*", page.read_text(encoding="utf-8"))
        assert not found, f"{page}: {found}"
