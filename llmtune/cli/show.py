"""`llmtune show model|dataset|template KEY`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from llmtune.cli.list import REGISTRIES
from llmtune.errors import UsageError


def run(argv: Sequence[str]) -> int:
    if argv and argv[0] in ("-h", "--help"):
        sys.stdout.write("usage: llmtune show model|dataset|template KEY\n")
        return 0
    if len(argv) != 2 or f"{argv[0].rstrip('s')}s" not in REGISTRIES:
        raise UsageError("Say what to show: llmtune show model|dataset|template KEY.")
    registry = REGISTRIES[f"{argv[0].rstrip('s')}s"]
    key = registry.canonical(argv[1])
    entry = registry[key]
    sys.stdout.write(f"{registry.kind} {key}, registered at {registry.origin(key)}\n")
    for field in dataclasses.fields(entry):
        value = getattr(entry, field.name)
        shown = getattr(value, "__qualname__", None) or repr(value)
        sys.stdout.write(f"  {field.name}: {shown}\n")
    return 0
