"""Reward for the right final answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmtune.rewards.answers import find_answer, same_answer

REFERENCES = ("solution", "answer", "ground_truth", "response")
"""Columns of the reference, in order; `response` is the row's own response."""
PARSE_SECONDS, VERIFY_SECONDS = 10, 5


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """1 where the final answer of a completion equals that of the reference, else 0; None without a reference.

    Numbers are equal as numbers (1,000 = 1000.0 = $1000 = 1e3, 1/2 = 0.5; 50% = 50 and 0.5), other answers as text
    without case, punctuation and blanks. `find_answer` says where the answer is looked for. A reference that is a list
    names several right answers. What this finds unequal is asked of math-verify where that is installed.

    Args:
        column: Column of the reference. By default the first of solution, answer, ground_truth and response that the
            row has.

    Source:
        The accuracy reward of DeepSeek-R1, https://arxiv.org/abs/2501.12948
    """

    column: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return ("|".join(REFERENCES),) if self.column is None else (self.column,)

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float | None]:
        names = REFERENCES if self.column is None else (self.column,)
        found: list[float | None] = []
        for row, text in enumerate(completions):
            values = (columns[name][row] for name in names if name in columns)
            references = next(filter(None, map(_references, values)), None)
            found.append(None if references is None else float(any(is_right(text, one) for one in references)))
        return found


def is_right(completion: str, reference: str) -> bool:
    """Return whether the final answer of a completion equals that of a reference."""
    found = find_answer(completion)
    wanted = find_answer(reference)
    if not found.text:
        return False
    return same_answer(found, wanted.text) or _verified(completion, reference)


def _references(value: object) -> list[str]:
    """Return the right answers of a cell, as text; none where it is empty."""
    values = value if isinstance(value, list | tuple) else [value]
    return [text for one in values if one is not None and (text := str(one).strip())]


def _verified(completion: str, reference: str) -> bool:
    """Ask math-verify, which knows LaTeX: equal expressions, sets, intervals. False where it is not installed."""
    try:
        from math_verify import parse, verify  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return False
    # Its time limits are signals, which only the main thread may set.
    limits = threading.current_thread() is threading.main_thread()
    parsing, verifying = (PARSE_SECONDS, VERIFY_SECONDS) if limits else (None, None)
    try:
        wanted = parse(reference, parsing_timeout=parsing) or parse(f"${reference}$", parsing_timeout=parsing)
        found = parse(completion, parsing_timeout=parsing)
        return bool(wanted) and bool(found) and bool(verify(wanted, found, timeout_seconds=verifying))
    except Exception:  # weird text is a wrong answer, not an error
        return False
