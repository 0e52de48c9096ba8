"""Texts to be written: advertisements, questions, poems, laws."""

from __future__ import annotations

from llmtune.data.preprocess.common import Row, text_of
from llmtune.data.values import text_or_none
from llmtune.errors import RowError

__all__ = ["advertise_gen", "dureader_question", "poetry", "tigerbot_law"]

ADVERTISE = "Task: Generating advertisements based on keywords.\nKeywords: {keywords}\nAdvertisements: "
QUESTION = "Task: Question Generation\nContext: {context}\nAnswer: {answer}\nQuestion: "
POEM = "写诗"
SEPARATOR = "[SEP]"


def advertise_gen(row: Row) -> Row:
    return {"query": ADVERTISE.format(keywords=text_of(row, "content")), "response": text_of(row, "summary")}


def dureader_question(row: Row) -> Row:
    parts = text_of(row, "text1").split(SEPARATOR)
    if len(parts) != 2:
        raise RowError(f"column 'text1' has {len(parts) - 1} times {SEPARATOR} where answer and context part at one")
    answer, context = parts
    return {"query": QUESTION.format(context=context, answer=answer), "response": text_of(row, "text2")}


def poetry(row: Row) -> Row:
    return {"query": POEM, "response": text_of(row, "text1")}


def tigerbot_law(row: Row) -> Row:
    """A text to learn whole: type and title on lines of their own, then the chapters that are there, and the law."""
    chapters = [text_or_none(row, f"chapter{number}") or "" for number in (1, 2, 3)]
    text = f"{text_of(row, 'type')}\n{text_of(row, 'title')}\n{''.join(chapters)}{text_of(row, 'content')}"
    return {"text": text}
