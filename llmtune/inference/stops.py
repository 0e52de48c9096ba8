"""Many stop words at once: one automaton steps through a text, whatever their number."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

__all__ = ["StopAutomaton"]


class StopAutomaton:
    """Aho-Corasick automaton. A state is a number; 0 is the start.

    Source: Aho and Corasick, Efficient string matching: an aid to bibliographic search, CACM 18(6), 1975.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._fallback = [0]
        self.depth = [0]
        """By state: characters at the end of the text that may begin a word."""
        self.found = [0]
        """By state: the length of the longest word that ends here; 0 where none does."""
        for word in words:
            self._add(word)
        self._link()

    def step(self, state: int, character: str) -> int:
        while state and character not in self._next[state]:
            state = self._fallback[state]
        return self._next[state].get(character, 0)

    def _add(self, word: str) -> None:
        state = 0
        for character in word:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._fallback.append(0)
                self.depth.append(self.depth[state] + 1)
                self.found.append(0)
            state = self._next[state][character]
        if word:
            self.found[state] = len(word)

    def _link(self) -> None:
        """Return the fallback of a state: the longest other prefix of a word that the text ends with."""
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for character, child in self._next[state].items():
                self._fallback[child] = self.step(self._fallback[state], character)
                self.found[child] = self.found[child] or self.found[self._fallback[child]]
                queue.append(child)
