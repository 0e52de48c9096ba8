"""Convert any row into a Conversation. Its format is recognised from its columns; no value is guessed.

Cells that are null count as absent. A row that comes straight from an Arrow table with nested structs should go
through `readers.without_nulls` first, since Arrow pads tool arguments with nulls that are not in the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from llmtune.data.contents import Found, arrange, check_turns, image_path
from llmtune.data.formats_messages import IMAGE_KEYS, parse_message, parse_messages, transposed
from llmtune.data.image_marks import named_images
from llmtune.data.shapes import ANSWERS, LISTS, Shape, nearest_column, present, question_and_answer, recognise_cells
from llmtune.data.values import json_text, kind_of, parse_literal, parse_tools, text_or_none
from llmtune.errors import RowError
from llmtune.types import Conversation, Json, Message, Role


def to_conversation(row: Mapping[str, Any], *, need_answer: bool = True, found: Found | None = None) -> Conversation:
    """Convert a row of any known format into a checked conversation.

    Contributing to the loss: only the response of query/response, alpaca, prompt/completion and preference rows;
    every assistant message of the messages formats, except those with `"weight": 0`, `"loss": false` or the like; all
    of a text. A preference row (chosen, rejected) gives its conversation with the chosen response, as SFT needs it; a
    row with a label (KTO) gives its messages, whatever the label is: see `shapes.is_rejected`.

    Args:
        row: Not mutated.
        need_answer: False allows a row without a response, for inference.
        found: Collects what the report says about the row's messages.

    Raises:
        RowError: The row has no known format or breaks its rules. The message holds the reason only.
    """
    cells = present(row)
    return conversation_of_cells(cells, recognise_cells(cells).shape, need_answer, Found() if found is None else found)


def conversation_of_cells(cells: dict[str, Any], shape: Shape, need_answer: bool, found: Found) -> Conversation:
    """Like `to_conversation`, for the cells that `shapes.present` returned and the format that they have."""
    messages = arrange(_messages_of(cells, shape, found, need_answer), found)
    messages = _with_system(messages, text_or_none(cells, "system"))
    check_turns(messages, need_answer=need_answer)
    tools = parse_tools(cells.get("tools")) or tuple(tool for one in found.tools for tool in parse_tools(one))
    questions = [message.content for message in messages if message.role == "user"]
    images = named_images(questions, _all_images(cells, found.images))
    return Conversation(tuple(messages), tools, images, _template_kwargs(cells.get("chat_template_kwargs")))


def shape_of(row: Mapping[str, Any]) -> Shape:
    """Return the format that `to_conversation` would read a row as.

    Raises:
        RowError: None fits.
    """
    return recognise_cells(present(row)).shape


def rename_columns(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a copy of a row with renamed columns; an absent column stays absent.

    Raises:
        RowError: The new name is already that of another column, which is not null.
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


def _messages_of(cells: dict[str, Any], shape: Shape, found: Found, need_answer: bool) -> list[Message]:
    if shape == "preference":
        return _preference(cells, found)
    if shape in ("messages", "conversations"):
        key = next(key for key in LISTS if key in cells)
        return parse_messages(cells[key], key, found)
    if shape == "human-assistant":
        return _pairs_of(cells, found)
    if shape == "text":
        return [Message("assistant", text_or_none(cells, "text") or "", loss=True)]
    question, answer = question_and_answer(cells)
    if question and not answer and need_answer:
        raise RowError(_no_answer(cells, question))
    asked = _question(cells, question, found) if question else []
    answered = _side(cells, answer, "assistant", found) if answer else []
    return [*_untrainable([*_history(cells, found), *asked] if question else []), *answered]


def _no_answer(cells: Mapping[str, Any], question: str) -> str:
    misspelt = next(((key, near) for key in cells if (near := nearest_column(key)) in ANSWERS), None)
    hint = f"; found {misspelt[0]!r}; did you mean {misspelt[1]!r}?" if misspelt else ""
    return f"it has a question ({question!r}) but no answer: {', '.join(ANSWERS)} are missing or null{hint}"


def _question(cells: Mapping[str, Any], key: str, found: Found) -> list[Message]:
    if key != "instruction" or "input" not in cells:
        return _side(cells, key, "user", found)
    instruction, more = text_or_none(cells, key) or "", text_or_none(cells, "input") or ""
    return [Message("user", f"{instruction}\n{more}" if instruction and more else instruction or more)]


def _side(cells: Mapping[str, Any], key: str, role: Role, found: Found) -> list[Message]:
    """Return the messages of one half of a row: a text cell, one message, or a list of messages."""
    value = cells[key]
    if isinstance(value, Mapping) and not {"role", "from"} & {str(name).lower() for name in value}:
        return [Message(role, json_text(value, f"column {key!r}"), loss=role == "assistant")]  # with a structure
    if isinstance(value, (list, tuple, Mapping)):
        value = transposed(value)
        return parse_messages([value] if isinstance(value, Mapping) else value, key, found)
    return [Message(role, text_or_none(cells, key) or "", loss=role == "assistant")]


def _untrainable(messages: Sequence[Message]) -> list[Message]:
    return [dataclasses.replace(message, loss=False, weight=1.0) for message in messages]


def _history(cells: Mapping[str, Any], found: Found) -> list[Message]:
    value = cells.get("history")
    if isinstance(value, str):
        value = parse_literal(value, what="column 'history'") if value.strip() else None
    if not value:
        return []
    if not isinstance(value, (list, tuple)):
        raise RowError(f"column 'history' holds {kind_of(value)}, not a list of [query, response] pairs")
    if isinstance(value[0], Mapping) and ({"role", "from"} & {str(key).lower() for key in value[0]}):
        return parse_messages(value, "history", found)
    messages: list[Message] = []
    for number, item in enumerate(value, start=1):
        cells = present(item) if isinstance(item, Mapping) else {}
        pair = [str(key) for key in question_and_answer(cells)]
        if isinstance(item, (list, tuple)) and len(item) == 2:
            cells, pair = {"query": item[0], "response": item[1]}, ["query", "response"]
        if not all(isinstance(cells.get(key), (str, int, float)) for key in pair):
            raise RowError(f"entry {number} of 'history' is not a pair [query, response] of texts")
        found.leave("history[]", cells, pair)
        texts = [text_or_none(cells, key) or "" for key in pair]
        messages += [Message("user", texts[0]), Message("assistant", texts[1])]
    return messages


def _pairs_of(cells: Mapping[str, Any], found: Found) -> list[Message]:
    key = next(key for key in LISTS if key in cells)
    messages: list[Message] = []
    for number, pair in enumerate(cells[key], start=1):
        where = f"entry {number} of {key!r}"
        if not isinstance(pair, Mapping) or pair.get("human") is None:
            raise RowError(f"{where} has no 'human' text; expected {{human, assistant}}")
        more = {name: cell for name, cell in pair.items() if name not in ("human", "assistant")}
        shown = {name: more.pop(name) for name in IMAGE_KEYS if name in more}
        messages.append(_half(pair["human"], "user", shown, where, key, found))
        if pair.get("assistant") is not None:
            messages.append(_half(pair["assistant"], "assistant", more, where, key, found))
        else:
            found.leave(f"{key}[]", more, ())
    return messages


def _half(content: Any, role: Role, more: Mapping[str, Any], where: str, key: str, found: Found) -> Message:
    """Return one half of a pair; further keys belong to the response, images to the question."""
    return parse_message({**more, "role": role, "content": content}, where, f"{key}[]", found)


def _preference(cells: dict[str, Any], found: Found) -> list[Message]:
    chosen = _side(cells, "chosen", "assistant", found)
    if any(
        message.role == "user" for message in chosen
    ):  # the whole conversation stands in `chosen`, as in TRL's implicit prompt
        return [*_untrainable(chosen[:-1]), chosen[-1]]
    rest = {key: value for key, value in cells.items() if key not in ("chosen", "rejected", *ANSWERS)}
    shape = recognise_cells(rest).shape  # still cells of `present`
    return [*_untrainable(_messages_of(rest, shape, found, need_answer=False)), *chosen]


def _with_system(messages: list[Message], system: str | None) -> list[Message]:
    """Put the system column first. An empty column counts as absent; an empty system *message* is kept."""
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


def _template_kwargs(value: Any) -> dict[str, Json]:
    if isinstance(value, str):
        value = parse_literal(value, what="column 'chat_template_kwargs'") if value.strip() else None
    if not value:
        return {}
    if not isinstance(value, Mapping):
        raise RowError(f"column 'chat_template_kwargs' holds {kind_of(value)}, not an object")
    json_text(dict(value), "column 'chat_template_kwargs'")
    return {str(key): cell for key, cell in value.items()}
