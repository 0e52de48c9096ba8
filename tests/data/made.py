"""Conversations and files, as the tests of data write them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from llmtune.data.canonical import from_record
from llmtune.data.readers import read_rows
from llmtune.errors import DataError
from llmtune.types import Conversation, Media, Message

ROWS = [{"query": "你好", "response": "a\u2028b"}, {"query": "q2", "response": "r2"}, {"query": "q3", "response": "r3"}]
"""Of the files that tests of readers write."""


def turns(
    *contents: str, system: str | None = None, only_last: bool = False, images: tuple[str, ...] = ()
) -> Conversation:
    """A conversation of user and assistant by turns."""
    made = [Message("system", system)] if system is not None else []
    for number, content in enumerate(contents):
        answer = number % 2 == 1
        learned = answer and (not only_last or number == len(contents) - 1)
        made.append(Message("assistant" if answer else "user", content, learned))
    return Conversation(tuple(made), media=tuple(map(Media, images)))


def conversations_of(dataset: Any) -> list[Conversation]:
    return [from_record(row) for row in dataset]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


DAMAGED = {
    "cut": lambda raw: raw[: len(raw) // 2],
    "emptied": lambda raw: b"",
    "zeroed": lambda raw: bytes(len(raw)),
    "zeroed_inside": lambda raw: raw[: len(raw) // 3] + bytes(len(raw) // 3) + raw[len(raw) // 3 * 2 :],
    "garbage": lambda raw: bytes(range(256)),
    "null": lambda raw: b"null",
    "list": lambda raw: b"[1]",
    "object": lambda raw: b"{}",
    "deep": lambda raw: b"[" * 100_000,
}
"""What becomes of a cached file's bytes, whatever the file is."""


def rows_of(path: Path) -> list[object]:
    return [row for _, row in read_rows(path)]


def write_raw(path: Path, content: str | bytes) -> Path:
    """Write bytes as they are, packed where the name says so."""
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        rows_of(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message
