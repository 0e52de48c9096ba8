"""Instruction, input, output."""

from __future__ import annotations

from typing import Any

from llmtune.data.preprocess.common import Drop, Row
from llmtune.data.values import text_or_none

__all__ = ["NO_OUTPUT", "alpaca", "alpaca_zh"]

NO_OUTPUT = Drop("no output")
LABEL = "输入："
"""Some inputs of the Chinese translation begin with their own label."""


def alpaca(row: Row) -> Row | Drop:
    """Leave out rows without an output; how instruction and input are joined is the alpaca shape's business."""
    if row.get("output") is None:
        return NO_OUTPUT
    return _three_columns(row, row.get("input"))


def alpaca_zh(row: Row) -> Row | Drop:
    if row.get("output") is None:
        return NO_OUTPUT
    more = text_or_none(row, "input")
    return _three_columns(row, more.removeprefix(LABEL) if more else more)


def _three_columns(row: Row, more: Any) -> Row:
    return {"instruction": row.get("instruction"), "input": more, "output": row["output"]}
