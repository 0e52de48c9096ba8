"""Programs."""

from __future__ import annotations

from llmtune.data.preprocess.common import Drop, Row, text_of

__all__ = ["leetcode"]

FENCE = "```python"


def leetcode(row: Row) -> Row | Drop:
    """The problem stands as a heading above the one block of code; the answer is the code and its explanation."""
    text = text_of(row, "code_with_problem")
    if text.count(FENCE) != 1:
        return Drop(f"not exactly one {FENCE} block")
    start = text.index(FENCE)
    problem, code = text[:start].removeprefix("# "), text[start:].strip()
    return {"query": problem, "response": f"{code}\n\n{text_of(row, 'explanation_only')}"}
