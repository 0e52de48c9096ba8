"""Any row -> Conversation. The shape of a row is recognised from its columns; nothing is replaced by a guess.

Cells that are null count as absent. A row that comes straight from an Arrow table with nested structs should go
through `readers.without_nulls` first, since Arrow pads tool arguments with nulls that the data never had.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from llmtune.data.formats_messages import (
    check_turns,
    image_path,
    kind_of,
    parse_literal,
    parse_messages,
    parse_tools,
    text_or_none,
)
from llmtune.data.image_marks import named_images
from llmtune.data.shapes import ANSWERS, LISTS, Shape, nearest_column, present, question_and_answer, recognise
from llmtune.errors import RowError
from llmtune.types import Conversation, Message, Role

__all__ = ["Shape", "rename_columns", "shape_of", "to_conversation"]


def to_conversation(row: Mapping[str, Any], *, need_answer: bool = True) -> Conversation:
    """Turn a row of any known shape into a checked conversation.

    What is learned: the answer alone of query/response, alpaca, prompt/completion and preference rows; every
    assistant message of the messages shapes, except those with `"weight": 0` or `"loss": false`; all of a text.
    A preference row (chosen, rejected) gives its conversation with the chosen answer, as plain fine-tuning needs
    it; a row with messages and a label (KTO) gives its messages, whatever the label says.

    Args:
        row: Not mutated.
        need_answer: False lets a row end without an answer, for inference.

    Raises:
        RowError: The row fits no shape or breaks its rules. The message holds the reason only.
    """
    cells = present(row)
    shape = recognise(cells).shape
    images: list[str] = []
    messages = _messages_of(cells, shape, images, need_answer)
    messages = _with_system(messages, text_or_none(cells, "system"))
    check_turns(messages, need_answer=need_answer)
    tools = parse_tools(cells.get("tools"))
    questions = [message.content for message in messages if message.role == "user"]
    return Conversation(tuple(messages), tools, named_images(questions, _all_images(cells, images)))


def shape_of(row: Mapping[str, Any]) -> Shape:
    """The shape that `to_conversation` would read a row as.

    Raises:
        RowError: None fits.
    """
    return recognise(present(row)).shape


def rename_columns(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A copy of a row whose columns have the new names; a column that is absent stays absent.

    Raises:
        RowError: A new name is another column's name already, and that column is not null.
    """
    renamed = {key: value for key, value in row.items() if key not in columns}
    for old, new in columns.items():
        if old not in row:
            continue
        if renamed.get(new) is not None:
            raise RowError(f"column {old!r} cannot be renamed to {new!r}: the row has a column {new!r} already")
        renamed[new] = row[old]
    return renamed


# Building


def _messages_of(cells: dict[str, Any], shape: Shape, images: list[str], need_answer: bool) -> list[Message]:
    if shape == "preference":
        return _preference(cells, images)
    if shape in ("messages", "conversations"):
        key = next(key for key in LISTS if key in cells)
        return parse_messages(cells[key], what=f"column {key!r}", images=images)
    if shape == "human-assistant":
        return _pairs_of(cells, images)
    if shape == "text":
        return [Message("assistant", text_or_none(cells, "text") or "", loss=True)]
    question, answer = question_and_answer(cells)
    if question and not answer and need_answer:
        raise RowError(_no_answer(cells, question))
    asked = _question(cells, question, images) if question else []
    answered = _side(cells, answer, "assistant", images) if answer else []
    return [*_unlearned([*_history(cells, images), *asked] if question else []), *answered]


def _no_answer(cells: Mapping[str, Any], question: str) -> str:
    misspelt = next(((key, near) for key in cells if (near := nearest_column(key)) in ANSWERS), None)
    hint = f"; found {misspelt[0]!r}; did you mean {misspelt[1]!r}?" if misspelt else ""
    return f"it has a question ({question!r}) but no answer: {', '.join(ANSWERS)} are missing or null{hint}"


def _question(cells: Mapping[str, Any], key: str, images: list[str]) -> list[Message]:
    if key != "instruction" or "input" not in cells:
        return _side(cells, key, "user", images)
    instruction, more = text_or_none(cells, key) or "", text_or_none(cells, "input") or ""
    return [Message("user", f"{instruction}\n{more}" if instruction and more else instruction or more)]


def _side(cells: Mapping[str, Any], key: str, role: Role, images: list[str]) -> list[Message]:
    """One half of a row: a text cell, one message, or a list of messages."""
    value = cells[key]
    if isinstance(value, Mapping):
        return parse_messages([value], what=f"column {key!r}", images=images)
    if isinstance(value, (list, tuple)):
        return parse_messages(value, what=f"column {key!r}", images=images)
    return [Message(role, text_or_none(cells, key) or "", loss=role == "assistant")]


def _unlearned(messages: Sequence[Message]) -> list[Message]:
    return [dataclasses.replace(message, loss=False) for message in messages]


def _history(cells: Mapping[str, Any], images: list[str]) -> list[Message]:
    value = cells.get("history")
    if isinstance(value, str):
        value = parse_literal(value, what="column 'history'") if value.strip() else None
    if not value:
        return []
    if not isinstance(value, (list, tuple)):
        raise RowError(f"column 'history' holds {kind_of(value)}, not a list of [query, response] pairs")
    if isinstance(value[0], Mapping) and ({"role", "from"} & set(value[0])):
        return parse_messages(value, what="column 'history'", images=images)
    messages: list[Message] = []
    for number, item in enumerate(value, start=1):
        pair = question_and_answer(present(item)) if isinstance(item, Mapping) else (0, 1)
        if isinstance(item, (list, tuple)) and len(item) == 2:
            item = dict(enumerate(item))
        texts = [item.get(key) if isinstance(item, Mapping) else None for key in pair]
        if not all(isinstance(text, str) for text in texts):
            raise RowError(f"entry {number} of 'history' is not a pair [query, response] of texts")
        messages += [Message("user", str(texts[0])), Message("assistant", str(texts[1]))]
    return messages


def _pairs_of(cells: Mapping[str, Any], images: list[str]) -> list[Message]:
    key = next(key for key in LISTS if key in cells)
    messages: list[Message] = []
    for number, pair in enumerate(cells[key], start=1):
        if not isinstance(pair, Mapping) or pair.get("human") is None:
            raise RowError(f"entry {number} of {key!r} has no 'human' text; expected {{human, assistant}}")
        messages += _side(pair, "human", "user", images)
        if pair.get("assistant") is not None:
            messages += _side(pair, "assistant", "assistant", images)
    return messages


def _preference(cells: dict[str, Any], images: list[str]) -> list[Message]:
    chosen = _side(cells, "chosen", "assistant", images)
    if chosen[0].role != "assistant":  # the whole conversation stands in `chosen`, as in TRL's implicit prompt
        return [*_unlearned(chosen[:-1]), chosen[-1]]
    rest = {key: value for key, value in cells.items() if key not in ("chosen", "rejected", *ANSWERS)}
    shape = recognise(rest).shape
    return [*_unlearned(_messages_of(rest, shape, images, need_answer=False)), *chosen]


def _with_system(messages: list[Message], system: str | None) -> list[Message]:
    """Put the system column first. An empty column counts as not given; an empty system *message* is kept."""
    if not system:
        return messages
    if messages and messages[0].role == "system":
        if messages[0].content != system:
            raise RowError("the system column and the system message differ; keep one of them")
        return messages
    return [Message("system", system), *messages]


def _all_images(cells: Mapping[str, Any], inside: list[str]) -> tuple[str, ...]:
    value = cells.get("images", cells.get("image"))
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_literal(value, what="column 'images'")
    given = list(value) if isinstance(value, (list, tuple)) else [] if value in (None, "") else [value]
    column = [image_path(item) for item in given if item is not None]
    if column and inside and column != inside:
        raise RowError("images are named both in the images column and inside the contents; keep one of them")
    return tuple(column or inside)
