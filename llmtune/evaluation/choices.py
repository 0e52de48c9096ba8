"""Multiple-choice questions: the choice that the model finds most likely.

A row has a `question` (or `query`, `prompt`, `instruction`), optionally `system`, the `choices` (or `options`) as a
list, or each in a column of its own from `A` on, and the right one as `answer` (or `label`): its letter, its number
from 0, or its text.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.data.files import BadLine
from llmtune.data.items import expand, is_hub_source, parse_item
from llmtune.data.readers import read_rows
from llmtune.errors import DataError, RowError
from llmtune.types import Conversation, Message

QUESTION = ("question", "query", "prompt", "instruction")
CHOICES = ("choices", "options")
ANSWER = ("answer", "label")
LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class ChoiceQuestion:
    """`answer`: the number of the right choice, from 0."""

    question: str
    choices: tuple[str, ...]
    answer: int
    system: str | None = None

    def prompt(self, style: str) -> Conversation:
        text = self.question
        if style == "letter":
            lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=False)]
            text = "\n".join([text, *lines])
        first = () if self.system is None else (Message("system", self.system),)
        return Conversation((*first, Message("user", text)))

    def texts(self, style: str) -> tuple[str, ...]:
        """Return the continuations to compare: the choices themselves, or their letters."""
        return tuple(LETTERS[: len(self.choices)]) if style == "letter" else self.choices


def is_choice_row(row: Mapping[str, Any]) -> bool:
    has_choices = any(isinstance(row.get(name), list | dict) for name in CHOICES) or {"A", "B"} <= set(row)
    return has_choices and any(name in row for name in QUESTION)


def choice_question(row: Mapping[str, Any]) -> ChoiceQuestion:
    """Parse one row.

    Raises:
        RowError: A field is missing, or the answer is none of the choices.
    """
    question = next((row[name] for name in QUESTION if isinstance(row.get(name), str)), None)
    if question is None:
        raise RowError(f"a choice question needs its text as one of {', '.join(QUESTION)}; found {', '.join(row)}")
    choices = tuple(map(str, _choices(row)))
    if len(choices) < 2 or len(choices) > len(LETTERS):
        raise RowError(f"a choice question has 2 to {len(LETTERS)} choices, not {len(choices)}")
    answer = next((row[name] for name in ANSWER if row.get(name) is not None), None)
    if answer is None:
        raise RowError(f"a choice question needs the right choice as {' or '.join(ANSWER)}")
    system = row.get("system")
    return ChoiceQuestion(question, choices, _number(answer, choices), system if isinstance(system, str) else None)


def _choices(row: Mapping[str, Any]) -> Sequence[Any]:
    found = next((row[name] for name in CHOICES if row.get(name) is not None), None)
    if isinstance(found, dict):  # as ARC has them: {"text": [...], "label": [...]}
        return list(found["text"]) if "text" in found else list(found.values())
    if found is not None:
        return list(found)
    letters = [letter for letter in LETTERS if row.get(letter) is not None]
    if letters != list(LETTERS[: len(letters)]):
        raise RowError(f"the choices {', '.join(letters)} skip a letter")
    return [row[letter] for letter in letters]


def _number(answer: Any, choices: Sequence[str]) -> int:
    text = str(answer).strip()
    if text in choices:
        return list(choices).index(text)
    letter = text.strip("().").upper()
    if len(letter) == 1 and letter in LETTERS[: len(choices)]:
        return LETTERS.index(letter)
    if text.isdigit() and int(text) < len(choices):
        return int(text)
    raise RowError(f"the answer {answer!r} is none of the {len(choices)} choices: give its letter, number or text")


def split_choices(items: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the names into datasets of plain rows and files of choice questions, by their first row."""
    plain: list[str] = []
    choices: list[str] = []
    for item in items:
        (choices if _has_choices(item) else plain).append(item)
    return plain, choices


def _has_choices(item: str) -> bool:
    source = parse_item(item).source
    path = expand(source)
    if is_hub_source(source) or not Path(path).exists():
        return False
    _, row = next(read_rows(path))
    return not isinstance(row, BadLine) and is_choice_row(row)


def read_choices(items: Sequence[str], num_samples: int = -1) -> list[ChoiceQuestion]:
    """Return all questions of these files, in order.

    Raises:
        DataError: A row that is no choice question; names its place.
    """
    found = [question for item in items for question in _read(item)]
    return found if num_samples < 0 else found[:num_samples]


def _read(item: str) -> Iterator[ChoiceQuestion]:
    parsed = parse_item(item)
    for number, (place, row) in enumerate(read_rows(expand(parsed.source))):
        if parsed.sample is not None and number >= parsed.sample:
            return
        if isinstance(row, BadLine):
            raise DataError(f"{parsed.source}, {place}: {row.reason}.")
        try:
            yield choice_question(row)
        except RowError as err:
            raise DataError(f"{parsed.source}, {place}: {err}.") from err
