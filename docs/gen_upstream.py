"""Page of the patches of other libraries, from the `# upstream:` comments above them."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gen_commands import cell, table

ROOT = Path(__file__).resolve().parents[1]
TESTS = "tests/test_upstream.py"

MARK = re.compile(r"^ *# upstream: (?P<package>\S+) (?P<version>\S+) (?P<link>no issue|\S+): (?P<why>.+)$")
ISSUE = re.compile(r"([\w.-]+/[\w.-]+)#(\d+)")

SOURCES = {
    "accelerate": "huggingface/accelerate/blob/v{}/src",
    "bitsandbytes": "bitsandbytes-foundation/bitsandbytes/blob/{}",
    "datasets": "huggingface/datasets/blob/{}/src",
    "deepspeed": "deepspeedai/DeepSpeed/blob/v{}",
    "gguf": "ggml-org/llama.cpp/blob/gguf-v{}/gguf-py",
    "gptqmodel": "ModelCloud/GPTQModel/blob/v{}",
    "lm_eval": "EleutherAI/lm-evaluation-harness/blob/v{}",
    "peft": "huggingface/peft/blob/v{}/src",
    "tiktoken": "openai/tiktoken/blob/{}",
    "tokenicer": "ModelCloud/Tokenicer/blob/v{}",
    "torch": "pytorch/pytorch/blob/v{}",
    "torchao": "pytorch/ao/blob/v{}",
    "transformers": "huggingface/transformers/blob/v{}/src",
}
"""Where a package's files are on GitHub, by version. Those of the others are shown without a link."""

PAGE = """# Patches of other libraries

Where llmtune replaces, hides or depends on something that a library does not offer. Each place has a comment
`# upstream: <package> <version> <link>: why` above it. The version is the one at which the reason was seen; the link
is an issue, or the file as installed. A test fails when the library no longer gives the reason, by what it does or by
what its source says: see then whether the patch can go. {count} places, {tested} of them with such a test.

{table}
"""


class Patch(NamedTuple):
    """One `# upstream:` comment. `place`: file below llmtune/, then the function, numbered where it has several."""

    place: str
    package: str
    version: str
    link: str
    why: str

    @property
    def file(self) -> str | None:
        """The upstream file, as installed."""
        return None if self.link == "no issue" or "#" in self.link else self.link


def patches() -> list[Patch]:
    """All patches, by file and line."""
    found: list[Patch] = []
    for file in sorted((ROOT / "llmtune").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "# upstream:" not in text:
            continue
        tree = ast.parse(text)
        for number, line in enumerate(text.splitlines(), 1):
            if "# upstream:" in line:
                match = MARK.match(line)
                if match is None:
                    raise ValueError(f"{file}:{number}: not # upstream: <package> <version> <link or no issue>: why")
                place = ":".join([file.relative_to(ROOT / "llmtune").as_posix(), *_scope(tree, number + 1)])
                found.append(Patch(place, *match.groups()))
    total, seen = Counter(patch.place for patch in found), Counter[str]()
    for at, patch in enumerate(found):
        if total[patch.place] > 1:
            seen[patch.place] += 1
            found[at] = patch._replace(place=f"{patch.place}#{seen[patch.place]}")
    return found


def _scope(tree: ast.AST, line: int) -> list[str]:
    """Name of the innermost function or class around a line; empty at the top of a module."""
    names: list[str] = []
    for node in ast.walk(tree):  # outer ones come first
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.lineno <= line <= (node.end_lineno or 0):
            names.append(node.name)
    return [".".join(names)] if names else []


def tests() -> dict[str, str]:
    """The test of each place, from the tables and decorators of tests/test_upstream.py, which is not imported."""
    tree = ast.parse((ROOT / TESTS).read_text(encoding="utf-8"))
    tables: dict[str, Any] = {}
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            tables[node.target.id] = ast.literal_eval(node.value)
        if isinstance(node, ast.FunctionDef):
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "covers":
                    found |= {ast.literal_eval(place): f"{TESTS}::{node.name}" for place in call.args}
    found |= dict.fromkeys(tables["STILL_SAYS"], f"{TESTS}::test_upstream_still_says_so")
    return found | tables["ELSEWHERE"]


def link_of(patch: Patch) -> str:
    issue = ISSUE.fullmatch(patch.link)
    if issue is not None:
        return f"[{patch.link}](https://github.com/{issue[1]}/issues/{issue[2]})"
    source = SOURCES.get(patch.package)
    if patch.file is None or source is None:
        return patch.link if patch.file is None else f"`{patch.file}`"
    return f"[{patch.file.rsplit('/', 1)[-1]}](https://github.com/{source.format(patch.version)}/{patch.file})"


def pages() -> Iterator[tuple[str, str]]:
    by_place = tests()
    found = patches()
    head = ("package", "version", "place in llmtune/", "why", "link", "test")
    rows = (
        (
            patch.package,
            patch.version,
            f"`{patch.place}`",
            cell(patch.why),
            link_of(patch),
            f"`{by_place[patch.place].rsplit('::', 1)[-1]}`" if patch.place in by_place else "none yet",
        )
        for patch in sorted(found, key=lambda patch: (patch.package.lower(), patch.place))
    )
    tested = sum(patch.place in by_place for patch in found)
    yield "upstream.md", PAGE.format(count=len(found), tested=tested, table=table(head, rows))
