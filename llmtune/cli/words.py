"""Words of commands that have no class of arguments: switches, and JSON on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from llmtune.errors import UsageError


def take_switch(argv: Sequence[str], flag: str) -> tuple[bool, list[str]]:
    """Split off `--json`, `--json true` or `--json=false`.

    Raises:
        UsageError: Another value.
    """
    on, rest, words = False, [], list(argv)
    while words:
        name, equals, value = words.pop(0).partition("=")
        if name.replace("-", "_").replace("__", "--", 1) != flag:
            rest.append(name + equals + value)
            continue
        if not equals:
            value = words.pop(0) if words and words[0].lower() in ("true", "false") else "true"
        if value.lower() not in ("true", "false"):
            raise UsageError(f"{flag}: expected true or false, not {value!r}.")
        on = value.lower() == "true"
    return on, rest


def refuse_flags(argv: Sequence[str], usage: str) -> None:
    """Refuse all flags that are left, at once.

    Raises:
        UsageError: There are some.
    """
    unknown = [word for word in argv if word.startswith("-")]
    if unknown:
        names = "\n".join(f"Unknown flag {word}." for word in unknown)
        raise UsageError(f"{names} {usage.strip()}")


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """Return a value for what JSON has no word for: the name of a function, the members of a set in order."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}:{name}" if name else repr(value)
