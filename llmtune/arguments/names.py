"""Names of layers as users give them: endings, or regular expressions over full names."""

from __future__ import annotations

__all__ = ["is_name_pattern"]

PATTERN = frozenset("\\^$*+?()[]|{}")


def is_name_pattern(name: str) -> bool:
    """Whether it can be no name, but is a regular expression, which PEFT matches with the whole of a full name."""
    return bool(PATTERN.intersection(name))
