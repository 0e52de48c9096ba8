"""Decode tokens to the text of a response in pieces: whole characters, stop words, the template's frame."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmtune.templates.thoughts import ThoughtMarks

if TYPE_CHECKING:
    from llmtune.templates.chat import ChatTemplate

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
        self._emitted = 0

    def add(self, token: int) -> str:
        text = self.peek(token)
        self.ids.append(token)
        if not text or text.endswith(HALF):
            return ""
        self._start, self._emitted = self._emitted, len(self.ids)
        return text

    def peek(self, token: int) -> str:
        """Return the text that `token` would add."""
        return self._behind([*self.ids[self._start :], token])

    def rest(self) -> str:
        """Return the text held back at the end of the response."""
        text = self._behind(self.ids[self._start :])
        self._start = self._emitted = len(self.ids)
        return text

    def _behind(self, ids: list[int]) -> str:
        before = self._decode(ids[: self._emitted - self._start])
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


def response_text(template: ChatTemplate, ids: list[int], words: Sequence[str] = ()) -> str:
    """Return the text of generated tokens, up to their stop token or stop word, without the template's frame.

    Args:
        words: Stop words beside those of the template.
    """
    single, several = template.split_stop_words(words)
    stops = {*template.stop_token_ids, *single}
    end = next((index for index, token in enumerate(ids) if token in stops), len(ids))
    text = text_of(template.tokenizer, ids[:end], template.thought_tokens)
    frame = Frame(*template.answer_frame)
    return frame.add(cut_at(text, [*template.stop_strings, *several])) + frame.rest()


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
                text, self._held, self.found = self._held[: place - automaton.found[state]], "", True
                return text
        self._state = state
        end = len(self._held) - automaton.depth[state]
        text, self._held = self._held[:end], self._held[end:]
        return text

    def rest(self) -> str:
        text, self._held = self._held, ""
        self._state = 0
        return text


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
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text

    def rest(self) -> str:
        text, self._held = self._held.removeprefix(self.before).removesuffix(self.after), ""
        return text


def held_back(text: str, words: Sequence[str]) -> int:
    """Return the number of characters at the end of a text that may begin one of a few short words."""
    return max((size for word in words for size in range(1, len(word)) if text.endswith(word[:size])), default=0)


def cut_at(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first stop word."""
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


# Many stop words at once: one automaton steps through a text, whatever their number


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


# Split a streamed generation into thought and content


class ThoughtText:
    """Streaming splitter of text pieces into (thought, content); the totals do not depend on the sizes of the pieces.

    Args:
        marks: Marks of thoughts of the model's family; None where it has none: then all is content.
        opened: The prompt ended in the opening of a thought.
    """

    def __init__(self, marks: ThoughtMarks | None, *, opened: bool = False) -> None:
        self.marks = marks
        self.opened = opened
        self.has_thought = False
        self._state = "content" if marks is None else "start"
        self._held = ""
        self._begun = False  # of the thought, then of the content: newlines before it are dropped

    def add(self, piece: str) -> tuple[str, str]:
        return self._take(piece, at_end=False)

    def finish(self) -> tuple[str, str]:
        """Return the text held back."""
        return self._take("", at_end=True)

    def _take(self, piece: str, *, at_end: bool) -> tuple[str, str]:
        if self.marks is None:
            return "", piece
        self._held += piece
        if self._state == "start" and not self._start(self.marks, at_end):
            return "", ""
        thought = self._thought(self.marks, at_end) if self._state == "thought" else ""
        content = self._content() if self._state == "content" else ""
        return thought, content

    def _start(self, marks: ThoughtMarks, at_end: bool) -> bool:
        """Decide whether the text begins with a thought; False while that is undecided."""
        lead = self._held.lstrip()
        if not at_end and len(lead) < len(marks.open) and marks.open.startswith(lead):
            return False
        opens = lead.startswith(marks.open)
        if opens:
            self._held = lead[len(marks.open) :]
        self.has_thought = opens or self.opened
        self._state = "thought" if self.has_thought else "content"
        self._begun = not self.has_thought
        return True

    def _thought(self, marks: ThoughtMarks, at_end: bool) -> str:
        if not self._begun:
            self._held = self._held.lstrip("\n")
        found = self._held.find(marks.close)
        if found >= 0:
            thought, self._held = self._held[:found].rstrip("\n"), self._held[found + len(marks.close) :]
            self._state, self._begun = "content", False
            return thought
        if at_end:
            thought, self._held = self._held.rstrip("\n"), ""
            return thought
        end = len(self._held) - held_back(self._held, (marks.close,))
        end = len(self._held[:end].rstrip("\n"))
        thought, self._held = self._held[:end], self._held[end:]
        self._begun = self._begun or bool(thought)
        return thought

    def _content(self) -> str:
        content, self._held = self._held, ""
        if not self._begun:
            content = content.lstrip("\n")
            self._begun = bool(content)
        return content


def split_answer(text: str, marks: ThoughtMarks | None, *, opened: bool) -> tuple[str | None, str]:
    """Return (thought, content) of a whole generation; the thought is None where there is none."""
    parts = ThoughtText(marks, opened=opened)
    first, last = parts.add(text), parts.finish()
    return first[0] + last[0] if parts.has_thought else None, first[1] + last[1]
