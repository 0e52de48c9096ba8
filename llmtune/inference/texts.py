"""From tokens to the text of an answer, piece by piece: whole characters, stop words, what a template writes around."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["HALF", "Frame", "StopWords", "TokenText", "cut_at", "held_back"]

HALF = "\ufffd"
"""What a tokenizer decodes the first bytes of a character to."""


class TokenText:
    """Tokens to text, piece by piece; half a character waits for its other half."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self._start = 0  # the pieces of some tokenizers depend on the token before
        self._told = 0

    def add(self, token: int) -> str:
        text = self.peek(token)
        self.ids.append(token)
        if not text or text.endswith(HALF):
            return ""
        self._start, self._told = self._told, len(self.ids)
        return text

    def peek(self, token: int) -> str:
        """What `token` would add to the text told so far."""
        return self._behind([*self.ids[self._start :], token])

    def rest(self) -> str:
        """What still waits at the end of the answer."""
        text = self._behind(self.ids[self._start :])
        self._start = self._told = len(self.ids)
        return text

    def _behind(self, ids: list[int]) -> str:
        before = self._decode(ids[: self._told - self._start])
        return self._decode(ids)[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""


class StopWords:
    """Holds back what may be the beginning of a stop word; ends at a whole one."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = [word for word in words if word]
        self.found = False
        self._held = ""

    def add(self, piece: str) -> str:
        self._held += piece
        cut = cut_at(self._held, self.words)
        if cut != self._held:
            self.found, self._held = True, ""
            return cut
        keep = held_back(self._held, self.words)
        told, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return told

    def rest(self) -> str:
        told, self._held = self._held, ""
        return told


class Frame:
    """Takes off what a template has the model write around an answer, a blank before it, say.

    The template writes it again where the answer stands in a history.
    """

    def __init__(self, before: str, after: str) -> None:
        self.before = before
        self.after = after
        self._held = ""

    def add(self, piece: str) -> str:
        self._held += piece
        if self.before:
            if self.before.startswith(self._held):
                return ""
            self._held, self.before = self._held.removeprefix(self.before), ""
        sizes = range(1, len(self.after) + 1)
        keep = max((size for size in sizes if self._held.endswith(self.after[:size])), default=0)
        told, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return told

    def rest(self) -> str:
        told, self._held = self._held.removeprefix(self.before).removesuffix(self.after), ""
        return told


def held_back(text: str, words: Sequence[str]) -> int:
    """Characters at the end of a text that may be the beginning of one of the words."""
    return max((size for word in words for size in range(1, len(word)) if text.endswith(word[:size])), default=0)


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop word."""
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
