"""Sums to be answered with a number: prompts whose responses a function can check. They ship as code."""

from __future__ import annotations

import random

from llmtune.data.info import register_dataset

LARGEST = 19
SHARE = 0.8
"""Share of the sums that is for training; no sum is in both parts."""


def tiny_sums() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return (train, validation): all sums of two numbers up to 19, in a fixed order."""
    numbers = range(LARGEST + 1)
    rows = [{"query": f"{a} + {b} = ?", "response": str(a + b)} for a in numbers for b in numbers]
    random.Random(0).shuffle(rows)
    border = round(SHARE * len(rows))
    return rows[:border], rows[border:]


register_dataset(
    "tiny-sums",
    get_function=tiny_sums,
    languages=("en",),
    tags=("prompts", "sums"),
    rows=400,
    source="llmtune/data/families/sums.py",
)
