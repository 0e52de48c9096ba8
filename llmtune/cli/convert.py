"""`llmtune convert FILE`: a file of LLaMA-Factory or Axolotl as a file of ours."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from llmtune.arguments.elsewhere.converted import converted
from llmtune.arguments.elsewhere.translation import Line, Translation
from llmtune.cli.words import refuse_flags
from llmtune.errors import UsageError, one_line
from llmtune.utils.logging import get_logger

USAGE = "usage: llmtune convert FILE.yaml > run.yaml\n"
EXAMPLES = (
    "llmtune convert lf_run.yaml > run.yaml    # a file of LLaMA-Factory",
    "llmtune convert ax_run.yaml > run.yaml    # of Axolotl",
)
BARE = re.compile(r"[\w./+-]+(?:[#:][\w./+-]+)*")
"""Values that need no quotes in YAML."""
LIST_FLAGS = ("train_args",)


def run(argv: Sequence[str]) -> int:
    if argv and argv[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0
    refuse_flags(argv, USAGE)
    if len(argv) != 1:
        raise UsageError(f"Say which file to convert. {USAGE.strip()}")
    path = Path(argv[0])
    found = converted(path)
    sys.stdout.write(as_yaml(found, path))
    if found.refusals:
        get_logger().warning(
            f"{len(found.refusals)} of {len(found.content)} keys of {path} cannot be said here; they stand at the end, "
            "as comments."
        )
    return 0


def as_yaml(found: Translation, path: Path) -> str:
    """Our file, with comments of what differs, what has no effect and what cannot be said."""
    lines = [f"# From {path.name}, a file of {found.tool}. llmtune train FILE runs it.", f"stage: {found.stage}"]
    merged = _merged(found.lines)
    lines += [_yaml_line(line) for line in merged if line.theirs]
    defaults = [_yaml_line(line) for line in merged if not line.theirs]
    lines += [f"# Defaults of {found.tool}, where llmtune's are others:", *defaults] if defaults else []
    harmless = [f"#   {key}: {one_line(reason)}" for key, reason in found.harmless]
    lines += ["# Without effect here:", *harmless] if harmless else []
    refused = [f"#   {one_line(one.theirs)}: {one_line(one.reason)}" for one in found.refusals]
    lines += ["# Cannot be said here, and changes the result:", *refused] if refused else []
    return "\n".join(lines) + "\n"


def _merged(lines: Sequence[Line]) -> list[Line]:
    """One line for each flag: those that collect values get all of them."""
    found: dict[str, Line] = {}
    for line in lines:
        former = found.get(line.flag)
        if former is not None and line.flag in LIST_FLAGS:
            theirs = f"{former.theirs}, {line.theirs}"
            line = dataclasses.replace(line, values=(*former.values, *line.values), theirs=theirs)
        found[line.flag] = line
    return list(found.values())


def _yaml_line(line: Line) -> str:
    words = [_yaml_word(value) for value in line.values]
    value = words[0] if len(words) == 1 and line.flag not in LIST_FLAGS else f"[{', '.join(words)}]"
    renamed = line.theirs if line.theirs != line.flag else ""
    comment = ", ".join(filter(None, (renamed, line.note)))
    return f"{line.flag}: {value}" + (f"  # {one_line(comment)}" if comment else "")


def _yaml_word(value: str) -> str:
    plain = BARE.fullmatch(value) is not None and value.lower() not in ("null", "~")
    return value if plain else json.dumps(value, ensure_ascii=False)
