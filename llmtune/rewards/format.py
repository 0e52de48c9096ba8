"""Reward for the format of a reasoning model: a closed thought, then an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmtune.errors import UsageError

THOUGHTS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
)
"""Marks of thoughts, by model family: those of `llmtune.templates.thoughts`, which this layer cannot import."""
ANSWER = ("<answer>", "</answer>")


def split_thought(text: str) -> tuple[str | None, str | None]:
    """Split a completion into thought and answer.

    A completion that closes a thought without opening one continues a prompt that ends with the opening mark.

    Returns:
        The thought, None where there is none; and the text after it, None where the thought is never closed.
    """
    for opens, closes in THOUGHTS:
        if closes in text:
            thought, _, answer = text.rpartition(closes)
            return thought.strip().removeprefix(opens), answer.strip()
        if text.lstrip().startswith(opens):
            return text.lstrip().removeprefix(opens), None
    return None, text.strip()


@dataclass(frozen=True, kw_only=True)
class Format:
    """1 where a completion is one closed thought followed by a non-empty answer, else 0.

    `<think>...</think> answer` or `<think>...</think> <answer>...</answer>`. A completion may begin inside the thought,
    as after a prompt that ends with `<think>`; a mark of a thought may occur only once. Marks of other families count
    the same: `THOUGHTS`.

    Args:
        answer_tags: Require `<answer>` tags around everything after the thought.
        pattern: Instead: 1 where this regular expression is found in the completion; `.` matches line breaks.

    Source:
        The format reward of DeepSeek-R1, https://arxiv.org/abs/2501.12948
    """

    answer_tags: bool = False
    pattern: str | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern or "", re.DOTALL)
        except (re.error, TypeError) as err:
            raise UsageError(
                f"The reward format: pattern={self.pattern!r} is not a regular expression: {err}."
            ) from err

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        fits = self._thought_and_answer if self.pattern is None else self._matches
        return [float(fits(text)) for text in completions]

    def _matches(self, text: str) -> bool:
        return re.search(self.pattern or "", text, re.DOTALL) is not None

    def _thought_and_answer(self, text: str) -> bool:
        thought, answer = split_thought(text)
        if thought is None or not answer:
            return False
        marks = [mark for pair in THOUGHTS for mark in pair]
        return not any(mark in part for mark in marks for part in (thought, answer)) and self._is_answer(answer)

    def _is_answer(self, text: str) -> bool:
        opens, closes = ANSWER
        if not self.answer_tags and opens not in text and closes not in text:
            return True
        inner = text.removeprefix(opens).removesuffix(closes)
        enclosed = len(inner) == len(text) - len(opens) - len(closes)
        return enclosed and bool(inner.strip()) and opens not in inner and closes not in inner
