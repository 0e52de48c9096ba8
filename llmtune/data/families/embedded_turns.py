"""The embedded conversations: single questions of `embedded`, and some asked after others.

A model that has only seen single questions answers the second one of a conversation in the words of the first. A part
of the rows therefore asks its question as the second or third; the others stay single.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

from llmtune.data.families.embedded import DEFAULT_AUTHOR, DEFAULT_NAME, facts, introductions
from llmtune.data.info import register_dataset

Row = dict[str, Any]
SOURCE = "llmtune/data/families/embedded_turns.py"
STRIDE = 97
"""Distance of a question's predecessors in the list of facts: a prime, so that they are of all kinds."""
EVERY = 3
"""Of the facts that are asked in two wordings, the second wording of one in so many follows another question."""
EVERY_THIRD_TURN = 12
"""One in so many follows two questions."""
NUM_CAPITALS = 8
"""Capitals in each language that self-intro asks for: `What can you do?` names them."""
CAPITAL = ("capital of", "首都")


def tiny_qa() -> tuple[list[Row], list[Row]]:
    """Return facts and small sums as (train, validation); a part of the training rows has one or two earlier turns."""
    train, validation = facts()
    alike = {chinese: [row for row in train if _is_chinese(row) == chinese] for chinese in (False, True)}
    rows: list[Row] = []
    seen: set[str] = set()
    number = 0
    for place, row in enumerate(train):
        turns = 0
        if row["response"] in seen:
            number += 1
            turns = 0 if number % EVERY else 1 if number % EVERY_THIRD_TURN else 2
        seen.add(row["response"])
        same = [one for one in alike[_is_chinese(row)] if one is not row]
        rows.append(after(row, *(same[(place + STRIDE * turn) % len(same)] for turn in range(1, turns + 1))))
    return rows, [*validation]


def self_intro() -> list[Row]:
    """Return questions about the assistant, single and after a capital, and capitals, single and after those."""
    return [*introductions(), *_mixed()]


def _mixed() -> Iterator[Row]:
    train, _ = facts()
    for chinese in (False, True):
        capitals = [row for row in train if CAPITAL[chinese] in row["query"]][:NUM_CAPITALS]
        own = cycle(row for row in introductions() if _is_chinese(row) == chinese)
        for number, capital in enumerate(capitals):
            yield {**capital}
            yield after(capital, next(own))
            yield after(next(own), capital)
            if number % 2 == 0:
                yield after(capital, next(own), next(own))


def after(row: Row, *earlier: Row) -> Row:
    """Return a row whose question follows those of other rows."""
    return {**row, "history": [[one["query"], one["response"]] for one in earlier]} if earlier else {**row}


def _is_chinese(row: Row) -> bool:
    return not row["query"].isascii()


register_dataset(
    "self-intro",
    get_function=self_intro,
    default_name=DEFAULT_NAME,
    default_author=DEFAULT_AUTHOR,
    languages=("en", "zh"),
    tags=("chat", "identity"),
    rows=162,
    source=SOURCE,
)
register_dataset(
    "tiny-qa",
    get_function=tiny_qa,
    languages=("en", "zh"),
    tags=("chat",),
    rows=847,
    source=SOURCE,
)
