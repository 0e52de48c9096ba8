"""Decode tokens to the text of a response in pieces: whole characters, stop words, the template's frame."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from llmtune.inference.stops import StopAutomaton

__all__ = ["HALF", "Frame", "StopWords", "TokenText", "cut_at", "held_back", "text_of"]

HALF = "\ufffd"
"""Replacement character: the decoding of an incomplete character."""


class TokenText:
    """Decode tokens to text in pieces; an incomplete character is held back.

    Args:
        shown: Special tokens that mark thoughts and are part of the text: id -> text.
    """

    def __init__(self, tokenizer: Any, shown: Mapping[int, str] | None = None) -> None:
        self.tokenizer = tokenizer
        self._shown = shown or {}
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
        """Return the text that `token` would add."""
        return self._behind([*self.ids[self._start :], token])

    def rest(self) -> str:
        """Return the text held back at the end of the response."""
        text = self._behind(self.ids[self._start :])
        self._start = self._told = len(self.ids)
        return text

    def _behind(self, ids: list[int]) -> str:
        before = self._decode(ids[: self._told - self._start])
        return self._decode(ids)[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return text_of(self.tokenizer, ids, self._shown)


def text_of(tokenizer: Any, ids: list[int], shown: Mapping[int, str]) -> str:
    """Decode tokens, without special ones other than those that are `shown`."""
    parts: list[str] = []
    for is_shown, run in itertools.groupby(ids, key=shown.__contains__):
        if is_shown:
            parts += [shown[token] for token in run]
        else:
            parts.append(str(tokenizer.decode(list(run), skip_special_tokens=True)))
    return "".join(parts)


class StopWords:
    """Filter that holds back text that may begin a stop word, and ends at the first whole one.

    Args:
        words: The stop words, or their automaton where several texts share it.
    """

    def __init__(self, words: Sequence[str] | StopAutomaton) -> None:
        self._automaton = words if isinstance(words, StopAutomaton) else StopAutomaton(words)
        self._state = 0
        self.found = False
        self._held = ""

    def add(self, piece: str) -> str:
        state, automaton = self._state, self._automaton
        start = len(self._held)
        self._held += piece
        for place, character in enumerate(piece, start=start + 1):
            state = automaton.step(state, character)
            if automaton.found[state]:
                told, self._held, self.found = self._held[: place - automaton.found[state]], "", True
                return told
        self._state = state
        end = len(self._held) - automaton.depth[state]
        told, self._held = self._held[:end], self._held[end:]
        return told

    def rest(self) -> str:
        told, self._held = self._held, ""
        self._state = 0
        return told


class Frame:
    """Filter that strips the template's text around a response, such as a blank before it.

    The template writes it again where the response is part of a history.
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
    """Return the number of characters at the end of a text that may begin one of a few short words."""
    return max((size for word in words for size in range(1, len(word)) if text.endswith(word[:size])), default=0)


def cut_at(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first stop word."""
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
