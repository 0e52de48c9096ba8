"""Every command and every piece of Python that the documentation shows is one that llmtune takes."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmtune.arguments.infer import InferArguments
from llmtune.arguments.sft import SftArguments
from llmtune.cli.check import CheckArguments, take_template_switch
from llmtune.cli.main import main
from llmtune.cli.parser import parse
from llmtune.cli.plan import PlanArguments
from llmtune.cli.push import PushArguments

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "README_CN.md", *sorted((ROOT / "examples").rglob("README.md"))]
SCRIPTS = sorted((ROOT / "examples").rglob("*.sh"))
COMMANDS = {"sft": SftArguments, "infer": InferArguments, "check": CheckArguments, "plan": PlanArguments}

# What stands for something of the reader's, and a value that parses. The rest is taken as it is.
VARIABLES = {
    "MODEL_TYPE": "qwen2.5-7b-instruct",
    "MODEL": "llmtune-tiny",
    "DATASET": "self-intro",
    "CKPT_DIR": "checkpoint",
    "CKPT": "checkpoint",
    "FULL": "checkpoint",
    "DATA": "data",
    "WORK": "work",
}


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def _llmtune_lines(shell: str) -> Iterator[str]:
    for line in shell.replace("\\\n", " ").splitlines():
        found = re.match(r"\s*(?:\w+=\S+ +)*(llmtune .*)", line)
        if found:
            yield found[1]


def _pages_and_lines() -> list[tuple[Path, str]]:
    from_pages = [(page, line) for page in PAGES for block in _blocks(page, "bash") for line in _llmtune_lines(block)]
    scripts = [(script, line) for script in SCRIPTS for line in _llmtune_lines(script.read_text(encoding="utf-8"))]
    return from_pages + scripts


def _filled(line: str) -> str:
    """Shell variables by their values; `$(dirname "$0")` by a name; `"$@"` away."""
    line = line.replace('"$@"', "").replace('$(dirname "$0")', "here").split(" | ")[0]
    line = re.sub(r"\$\{(\w+)(?::[-?][^}]*)?\}|\$(\w+)", lambda found: VARIABLES[found[1] or found[2]], line)
    return re.sub(r"\s#.*", "", line)


LINES = _pages_and_lines()


def test_documentation_is_found() -> None:
    assert len(PAGES) == 4
    assert len(SCRIPTS) == 3
    assert len(LINES) == 74


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda value: value.name if isinstance(value, Path) else "")
def test_commands_parse(page: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "run.yaml").write_text("model_type: llmtune-tiny\ndataset: [tiny-qa, my.jsonl]\n", encoding="utf-8")
    _, command, *flags = shlex.split(_filled(line))
    if command in ("list", "show"):
        assert main([command, *flags]) == 0
        return
    if command == "launch":
        (tmp_path / "my.jsonl").write_text('{"query": "a", "response": "b"}\n', encoding="utf-8")
        assert main([command, "--dry_run", *flags]) == 0
        return
    if command == "push":
        (tmp_path / flags[flags.index("--ckpt_dir") + 1]).mkdir(parents=True)
        assert parse(PushArguments, flags, command=command).hub_model_id
        return
    flags, _ = take_template_switch(flags)
    if "--ckpt_dir" in flags:  # a checkpoint that says what it is
        checkpoint = tmp_path / flags[flags.index("--ckpt_dir") + 1]
        checkpoint.mkdir(parents=True)
        (checkpoint / "adapter_config.json").touch()
        (checkpoint / "sft_args.json").write_text('{"model_type": "llmtune-tiny", "dataset": ["tiny-qa"]}')
    arguments = parse(COMMANDS[command], flags, command=command)
    assert arguments.model_type  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_compiles(page: Path) -> None:
    for block in _blocks(page, "python"):
        compile(block, str(page), "exec")


def test_readme_has_python() -> None:
    assert [len(_blocks(page, "python")) for page in PAGES[:2]] == [2, 2]


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_the_tables_are_those_of_the_registries(page: Path) -> None:
    """`make golden` writes them."""
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "tests/golden/readme_tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.written(page.name) == page.read_text(encoding="utf-8")


def test_both_readmes_show_the_same_commands() -> None:
    english, chinese = (
        [line for block in _blocks(page, "bash") for line in _llmtune_lines(block)] for page in PAGES[:2]
    )
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
