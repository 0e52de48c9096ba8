"""Command lines of sft, and what they change."""

from __future__ import annotations

import dataclasses
from typing import Any

from llmtune.arguments.parser import parse
from llmtune.arguments.stage import SftArguments

TINY = ["--model_type", "llmtune-tiny"]


def sft(*argv: str) -> SftArguments:
    return parse(SftArguments, [*TINY, *argv], command="sft")


def changed(*argv: str) -> dict[str, Any]:
    """What the flags changed."""
    plain, found = dataclasses.asdict(sft()), dataclasses.asdict(sft(*argv))
    return {name: value for name, value in found.items() if value != plain[name]}
