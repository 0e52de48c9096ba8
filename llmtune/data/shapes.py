"""Recognise the format of a row, and the columns that it is read from, by column names alone."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from llmtune.data.values import is_null, parse_literal
from llmtune.errors import RowError

Shape: TypeAlias = Literal[
    "query-response",
    "alpaca",
    "messages",
    "conversations",
    "human-assistant",
    "prompt-completion",
    "text",
    "response-only",
    "preference",
    "pair",
    "ranked responses",
    "labelled response",
]

QUERIES = ("query", "instruction", "prompt", "question", "problem")
ANSWERS = ("response", "output", "completion", "answer", "target", "solution")
PAIRS = (
    *(("query", "response"), ("instruction", "output"), ("prompt", "completion")),
    *(("question", "answer"), ("problem", "solution")),
)
LISTS = ("messages", "conversations", "conversation")
EXTRAS = ("system", "history", "tools", "images", "image", "chat_template_kwargs")
KNOWN = (*QUERIES, *ANSWERS, *LISTS, *EXTRAS, "input", "text", "chosen", "rejected")
ALIASES = {
    "system_prompt": "system",
    "template_kwargs": "chat_template_kwargs",
    "chosen_messages": "chosen",
    "rejected_messages": "rejected",
}
LABELS = ("label", "kto_tag")
"""Names of the KTO column that says whether the response is desirable."""

NAMES = frozenset({*KNOWN, *LABELS})

UNLABELLED: tuple[Shape, ...] = ("text", "response-only", "preference")
"""Formats whose label, if any, is something else, such as a class."""

EXPECTED = "query/response, instruction/input/output, messages, conversations, prompt/completion or text"


@dataclasses.dataclass(frozen=True, slots=True)
class Recognised:
    """Format of a row. `columns`: those that are used, in reading order."""

    shape: Shape
    columns: tuple[str, ...]


def recognise(row: Mapping[str, Any]) -> Recognised:
    """Return the format of a row and the columns that it is read from."""
    return recognise_cells(present(row))


def recognise_cells(cells: Mapping[str, Any]) -> Recognised:
    """Like `recognise`, for the cells that `present` returned."""
    found = _recognise(cells)
    label = next((key for key in LABELS if key in cells), None)
    if label is None or _truth(cells[label]) is None or found.shape in UNLABELLED:
        return found
    return Recognised(found.shape, (*found.columns, label))


def _recognise(cells: Mapping[str, Any]) -> Recognised:
    extras = [key for key in EXTRAS if key in cells and key != "history"]
    lists = [key for key in LISTS if key in cells]
    if "chosen" in cells:
        context = lists[:1] or [key for key in _question_keys(cells) if key]
        return Recognised("preference", (*context, "chosen", *extras))
    if lists:
        return Recognised(_shape_of_list(cells[lists[0]]), (lists[0], *extras))
    question, answer = question_and_answer(cells)
    used = [key for key in (question, "input" if question in ("instruction", "input") else None, answer) if key]
    used = [key for key in dict.fromkeys(used) if key in cells]
    if question:
        history = ["history"] if "history" in cells else []
        return Recognised(_shape_of_pair(question, answer, cells), (*used, *history, *extras))
    if "text" in cells or answer:
        _refuse_misspelt(cells)
        if "text" in cells:
            return Recognised("text", ("text", *extras))
        return Recognised("response-only", (*used, *extras))
    raise RowError(_no_shape(cells))


def present(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cells that are not null, under known names; list columns are parsed where they are text.

    `Query` is `query`, and `system_prompt` is `system`, where the row has no such column as well.
    """
    given = {key: value for key, value in row.items() if not is_null(value)}
    cells = {_name_of(key, given): value for key, value in given.items()}
    for key in LISTS:
        if isinstance(cells.get(key), str):
            cells[key] = parse_literal(cells[key], what=f"column {key!r}")
            if is_null(cells[key]):
                del cells[key]
    return cells


def _name_of(key: Any, cells: Mapping[Any, Any]) -> Any:
    if key in NAMES or not isinstance(key, str):
        return key
    name = _known_name(key)
    first = next((other for other in cells if other == name or _known_name(other) == name), key)
    return name if name in NAMES and name not in cells and first == key else key


def is_known_column(key: str) -> bool:
    return _known_name(key) in NAMES


@lru_cache(maxsize=1024)
def _known_name(key: Any) -> Any:
    if not isinstance(key, str):
        return key
    lower = "_".join(key.strip().lower().split())
    return ALIASES.get(lower, lower)


def is_rejected(cells: Mapping[str, Any], shape: Shape) -> bool:
    """Return whether a row is an undesirable KTO response: its label is false. A text's label is a class."""
    value = next((cells[key] for key in LABELS if key in cells), None)
    return shape not in UNLABELLED and _truth(value) is False


def _truth(value: Any) -> bool | None:
    """Return a boolean, also as CSV writes it. 0 and 1 may as well be classes."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def question_and_answer(cells: Mapping[str, Any]) -> tuple[str | None, str | None]:
    for question, answer in PAIRS:
        if question in cells and answer in cells:
            return question, answer
    answer_key = next((key for key in ANSWERS if key in cells), None)
    return _question_keys(cells)[0], answer_key


def _question_keys(cells: Mapping[str, Any]) -> tuple[str | None, str | None]:
    question = next((key for key in (*QUERIES, "input") if key in cells), None)
    return question, "input" if question == "instruction" and "input" in cells else None


def _shape_of_list(value: Any) -> Shape:
    value = [value] if isinstance(value, Mapping) else value  # one message, or a struct of lists
    first = value[0] if isinstance(value, Sequence) and value and not isinstance(value, str) else None
    if isinstance(first, Mapping):
        if first.get("human") is not None or first.get("assistant") is not None:
            return "human-assistant"
        if first.get("from") is not None:
            return "conversations"
    return "messages"


def _shape_of_pair(question: str, answer: str | None, cells: Mapping[str, Any]) -> Shape:
    if question in ("instruction", "input"):
        return "alpaca"
    if (question, answer) == ("prompt", "completion") or isinstance(cells[question], (list, tuple)):
        return "prompt-completion"
    return "query-response"


def _no_shape(cells: Mapping[str, Any]) -> str:
    if not cells:
        return "the row is empty: every column is null"
    found = ", ".join(repr(key) for key in cells)
    misspelt = next(((key, near) for key in cells if (near := nearest_column(key))), None)
    hint = f"; found {misspelt[0]!r}; did you mean {misspelt[1]!r}?" if misspelt else ""
    return f"it has no known format: its keys are {found}; expected {EXPECTED}{hint}"


def _refuse_misspelt(cells: Mapping[str, Any]) -> None:
    """Raise for a misspelt question, which would silently turn the row into text without its question."""
    for key in cells:
        if near := nearest_column(key):
            raise RowError(f"it has an answer but no question; found {key!r}; did you mean {near!r}?")


@lru_cache(maxsize=1024)
def nearest_column(key: str) -> str | None:
    if key in KNOWN:
        return None
    return next(iter(difflib.get_close_matches(str(key).lower(), KNOWN, n=1, cutoff=0.75)), None)
