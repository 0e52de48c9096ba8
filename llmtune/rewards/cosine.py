"""Accuracy scaled by the length of the completion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmtune.errors import UsageError
from llmtune.rewards.accuracy import Accuracy
from llmtune.rewards.lengths import required_length

VALUES = ("min_len_value_correct", "max_len_value_correct", "min_len_value_wrong", "max_len_value_wrong")


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Accuracy, between the value of an empty completion and that of one of `max_length` tokens, along a cosine.

    long + (short - long) * (1 + cos(pi * min(L / max_length, 1))) / 2, with the two values of correct answers or the
    two of wrong ones. None where `accuracy` is None.

    Args:
        max_length: Length in tokens at which the long value is reached. Filled from `--max_completion_length`.
        min_len_value_correct, max_len_value_correct: Short and long values of correct answers.
        min_len_value_wrong, max_len_value_wrong: Short and long values of wrong answers.
        column: Column of the reference, as in `accuracy`.

    Source:
        Appendix C.1 of Demystifying Long Chain-of-Thought Reasoning, https://arxiv.org/abs/2502.03373; the names and
        defaults of the values are those of ms-swift.
    """

    max_length: int | None = None
    min_len_value_correct: float = 1.0
    max_len_value_correct: float = 0.5
    min_len_value_wrong: float = -0.5
    max_len_value_wrong: float = 0.0
    column: str | None = None

    def __post_init__(self) -> None:
        required_length(self.max_length, "cosine")
        for name in VALUES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise UsageError(f"The reward cosine({name}=...) takes a number, not {value!r}.")

    @property
    def columns(self) -> tuple[str, ...]:
        return Accuracy(column=self.column).columns

    def __call__(
        self, completions: Sequence[str], completion_ids: Sequence[Sequence[int]], **columns: Any
    ) -> list[float | None]:
        correct = Accuracy(column=self.column)(completions, **columns)
        return [
            None if one is None else self._one(one, len(ids)) for one, ids in zip(correct, completion_ids, strict=True)
        ]

    def _one(self, correct: float, length: int) -> float:
        limit = required_length(self.max_length, "cosine")
        kind = "correct" if correct else "wrong"
        short, long = getattr(self, f"min_len_value_{kind}"), getattr(self, f"max_len_value_{kind}")
        return float(long + (short - long) * (1 + math.cos(math.pi * min(length / limit, 1.0))) / 2)
