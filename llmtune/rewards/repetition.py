"""Penalty on repeated n-grams."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmtune.errors import UsageError
from llmtune.rewards.lengths import whole_number

_SINGLE = (
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u318f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Scripts without blanks between words: Han, kana, bopomofo."""
_UNITS = re.compile(rf"[{_SINGLE}]|[^\W{_SINGLE}]+|[^\w\s]")


def units(text: str) -> list[str]:
    """Return lower-cased words, single characters of Chinese and Japanese, and single punctuation marks."""
    return _UNITS.findall(text.lower())


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """`max_penalty` times the share of n-grams that occurred before: (1 - unique / total) * max_penalty.

    0 for completions with fewer than n words. Words are separated by blanks; each character of Chinese and Japanese,
    and each punctuation mark, counts as one.

    Args:
        n: Length of the n-grams.
        max_penalty: At most 0.

    Source:
        Appendix C.2 of Demystifying Long Chain-of-Thought Reasoning, https://arxiv.org/abs/2502.03373
    """

    n: int = 3
    max_penalty: float = -1.0

    def __post_init__(self) -> None:
        whole_number(self.n, "repetition(n=...)", at_least=1)
        penalty = self.max_penalty
        if isinstance(penalty, bool) or not isinstance(penalty, int | float) or not -math.inf < penalty <= 0:
            raise UsageError(f"The reward repetition(max_penalty=...) takes a number up to 0, not {penalty!r}.")

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        return [self._one(units(text)) for text in completions]

    def _one(self, words: list[str]) -> float:
        total = len(words) - self.n + 1
        if total < 1:
            return 0.0
        unique = len({tuple(words[start : start + self.n]) for start in range(total)})
        return (1 - unique / total) * self.max_penalty + 0.0  # no negative zero
