"""`llmtune show model|dataset|template|tool_format KEY`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from llmtune.cli.list import REGISTRIES
from llmtune.errors import TemplateError, UsageError
from llmtune.templates.info import TemplateInfo
from llmtune.templates.pieces import Piece
from llmtune.templates.template import render
from llmtune.types import Conversation, Message

EXAMPLE = (
    Message("system", "Be brief."),
    Message("user", "What is 1 plus 2?"),
    Message("assistant", "3.", loss=True),
    Message("user", "And 2 plus 2?"),
    Message("assistant", "4.", loss=True),
)


def run(argv: Sequence[str]) -> int:
    if argv and argv[0] in ("-h", "--help"):
        sys.stdout.write("usage: llmtune show model|dataset|template|tool_format KEY\n")
        return 0
    if len(argv) != 2 or f"{argv[0].rstrip('s')}s" not in REGISTRIES:
        raise UsageError("Say what to show: llmtune show model|dataset|template|tool_format KEY.")
    registry = REGISTRIES[f"{argv[0].rstrip('s')}s"]
    key = registry.canonical(argv[1])
    entry = registry[key]
    sys.stdout.write(f"{registry.kind} {key}, registered at {registry.origin(key)}\n")
    for field in dataclasses.fields(entry):
        value = getattr(entry, field.name)
        shown = getattr(value, "__qualname__", None) or repr(value)
        sys.stdout.write(f"  {field.name}: {shown}\n")
    if isinstance(entry, TemplateInfo):
        sys.stdout.write(f"\n{_example(entry)}\n")
    return 0


def _example(info: TemplateInfo) -> str:
    """A conversation as the template writes it: as many turns, and a system text, as it has a place for."""
    if info.from_tokenizer:
        return "It writes what the tokenizer's own chat template writes: llmtune check --template shows a folder's."
    messages: tuple[Message, ...] = EXAMPLE if info.has_system_slot else EXAMPLE[1:]
    messages = messages if info.chat_sep is not None else messages[: len(messages) - 2]
    try:
        pieces = render(info, Conversation(messages))
    except TemplateError as err:
        return f"The example cannot be written: {err}."
    text = "".join(map(_shown, pieces)).replace("⟧⟦", "")
    return f"An example; what the model writes and learns in ⟦⟧, token ids in []:\n{text}"


def _shown(piece: Piece) -> str:
    if isinstance(piece.content, str):
        text = piece.content.replace("\n", "⏎\n")
    else:
        text = "[" + " ".join(map(str, piece.content)) + "]"
    return f"⟦{text}⟧" if piece.learned and text else text
