"""Conversations and files, as the tests of data write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmtune.data.canonical import from_record
from llmtune.types import Conversation, Message


def turns(
    *contents: str, system: str | None = None, only_last: bool = False, images: tuple[str, ...] = ()
) -> Conversation:
    """A conversation of user and assistant by turns."""
    made = [Message("system", system)] if system is not None else []
    for number, content in enumerate(contents):
        answer = number % 2 == 1
        learned = answer and (not only_last or number == len(contents) - 1)
        made.append(Message("assistant" if answer else "user", content, learned))
    return Conversation(tuple(made), images=images)


def conversations_of(dataset: Any) -> list[Conversation]:
    return [from_record(row) for row in dataset]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)
