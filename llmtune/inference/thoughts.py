"""Split a streamed generation into thought and content."""

from __future__ import annotations

from llmtune.inference.texts import held_back
from llmtune.templates.thoughts import ThoughtMarks

__all__ = ["ThoughtText", "split_answer"]


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
