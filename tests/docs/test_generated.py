"""What docs/generate.py writes is what stands in docs/, the translations are whole, and quoted errors are ours."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        return importlib.import_module("generate")


@pytest.fixture(scope="module")
def commands(generate: ModuleType) -> ModuleType:
    return generate.gen_commands


def test_pages_are_those_of_the_generator(generate: ModuleType) -> None:
    """`make golden` writes them."""
    made = dict(generate.pages())
    differ = [path for path, text in made.items() if (DOCS / path).read_text(encoding="utf-8") != text]
    assert differ == []
    folders = ("commands", "zh/commands", "registries", "migration")
    files = {str(file.relative_to(DOCS)) for folder in folders for file in (DOCS / folder).iterdir()}
    assert files | {path for path in made if path.startswith("images/")} | {"upstream.md", "llms.txt"} == set(made)


def test_llms_txt_has_every_page_of_the_site_with_a_description(generate: ModuleType) -> None:
    """The form of llmstxt.org: a title, a quoted summary, sections of links."""
    text = dict(generate.pages())["llms.txt"]
    head, summary = text.splitlines()[0], text.splitlines()[2]
    assert head == "# llmtune"
    assert summary.startswith("> ")
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    links = [re.fullmatch(r"- \[.+?\]\((.+?\.md)\): (.{3,200})", line) for line in lines]
    assert all(links), [line for line, link in zip(lines, links, strict=True) if not link]
    pages = [link[1] for link in links if link]
    assert len(set(pages)) == len(pages)
    assert {page for page in pages if not (DOCS / page).is_file()} == set()
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"^\s+- (?:.+: )?(\S+\.md)$", navigation, re.M))
    assert len(named) > 60
    assert set(pages) == named


def test_every_flag_has_a_translation_of_its_present_text(commands: ModuleType) -> None:
    """A row of docs/zh/translations.csv is out of date when its English is no longer the flag's."""
    translated = commands.translations()
    texts = commands.texts()
    assert {key for key in texts if key not in translated} == set()
    assert {key for key in translated if key not in texts} == set()
    assert {key for key, text in texts.items() if translated[key][0] != text} == set()


def test_translations_are_chinese_and_keep_names(commands: ModuleType) -> None:
    for key, (english, chinese) in commands.translations().items():
        assert re.search("[\u4e00-\u9fff]", chinese) or english == chinese, key
        names = set(re.findall(r"--\w+|`[^`]+`", english))
        assert {name for name in names if name not in chinese} == set(), key


def test_each_flag_stands_on_both_pages(commands: ModuleType) -> None:
    for command in commands.COMMANDS:
        if commands.has_flags(command):
            names = {f"--{flag.name}" for _, _, flags in commands.flags_by_group(command) for flag in flags}
            assert names
            for folder in ("commands", "zh/commands"):
                page = (DOCS / folder / f"{command}.md").read_text(encoding="utf-8")
                assert {f"--{name}" for name in re.findall(r"^\| `--(\w+)`", page, re.M)} >= names


def _texts_of_the_source() -> str:
    """Every text in llmtune, one a line; what an f-string fills in is a line break."""
    found: list[str] = []
    for file in (ROOT / "llmtune").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "\n" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_quoted_errors_are_in_the_source() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `(.+?)` \|", page, re.M)
    assert 40 <= len(messages) <= 60
    source = _texts_of_the_source()
    pieces = {piece for message in messages for piece in message.split("…") if len(piece.strip()) > 3}
    assert {piece for piece in pieces if piece not in source} == set()
    assert all(any(len(piece) > 11 for piece in message.split("…")) for message in messages if "Unknown" not in message)
