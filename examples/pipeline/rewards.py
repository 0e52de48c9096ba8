"""A reward function for the last stage, as trl and ms-swift write theirs."""

from __future__ import annotations

import re


def number(completions: list[str], answer: list[str], **kwargs: object) -> list[float]:
    """1 for the right number at the end of a response, less the further it is off, 0 for no number."""
    found = [re.search(r"(\d+)\.?$", text.strip()) for text in completions]
    return [1 / (1 + abs(int(one[1]) - int(right))) if one else 0.0 for one, right in zip(found, answer, strict=True)]
