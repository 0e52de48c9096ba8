"""Convert any row into a prompt to respond to, with the row's reference response and its columns for rewards.

Every format of conversations is one of prompts: a response that ends it becomes the reference. Of preferences, the
prompt is taken, and the best response as reference.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmtune.data.comparisons import compares, recognise_comparison, to_comparison
from llmtune.data.contents import Found
from llmtune.data.formats import to_conversation
from llmtune.data.shapes import Recognised, recognise
from llmtune.errors import RowError
from llmtune.types import Message, Prompt

UNSEEN = (bytes, bytearray, memoryview)
"""Types of cells that rewards do not get: the bytes of images."""


def to_prompt(
    row: Mapping[str, Any], found: Found | None = None, *, columns: Mapping[str, Any] | None = None
) -> Prompt:
    """Convert a row of any known format.

    Args:
        columns: Further cells that rewards get, beside those of the row.

    Raises:
        RowError: The row has no known format, or no question to respond to.
    """
    found = Found() if found is None else found
    cells = {key: _plain(cell) for key, cell in {**(columns or {}), **row}.items() if not isinstance(cell, UNSEEN)}
    if compares(row):
        with contextlib.suppress(RowError):  # a label may be that of a prompt without responses
            made = to_comparison(row, found)
            is_bad = made.answers[0].label is False
            return Prompt(made.prompt, () if is_bad else _plainly(made.answers[0].messages), cells)
    conversation = to_conversation(row, need_answer=False, found=found)
    asked = [place for place, message in enumerate(conversation.messages) if message.role == "user"]
    if not asked:
        raise RowError("it has no question to respond to")
    # A result of a tool at the end is what the model goes on from; else, its last question.
    end = len(conversation.messages) if conversation.messages[-1].role == "tool" else asked[-1] + 1
    prompt = replace(conversation, messages=_plainly(conversation.messages[:end]))
    return Prompt(prompt, _plainly(conversation.messages[end:]), cells)


def recognise_prompt(row: Mapping[str, Any]) -> Recognised:
    """Return the format that `to_prompt` reads a row as, and the columns that make the prompt."""
    return recognise_comparison(row) if compares(row) else recognise(row)


def _plainly(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages without marks of the loss, which sampled responses have of their own."""
    return tuple(replace(message, loss=False, weight=1.0) for message in messages)


def _plain(cell: Any) -> Any:
    """A cell as JSON can hold it."""
    if isinstance(cell, Mapping):
        return {str(key): _plain(value) for key, value in cell.items() if not isinstance(value, UNSEEN)}
    if isinstance(cell, (list, tuple)):
        return [_plain(value) for value in cell if not isinstance(value, UNSEEN)]
    return cell.isoformat() if isinstance(cell, (datetime.date, datetime.time)) else cell
