"""Thoughts in a text: their marks, and splitting a response into thought and content."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """Marks before and after a thought."""

    open: str
    close: str

    def is_open(self, prompt: str) -> bool:
        """Return whether a prompt ends in the opening of a thought, which the model continues."""
        return prompt.rstrip().endswith(self.open)

    def opening_of(self, prompt: str) -> str:
        """Return the part of a thought that ends a prompt: its opening, an empty one, its end, or "" for none."""
        start, end = re.escape(self.open), re.escape(self.close)
        found = re.search(rf"(?:{start}\s*(?:{end}\s*)?|{end}\s*)\Z", prompt)
        return "" if found is None else found[0]

    def split(self, text: str, *, opened: bool) -> tuple[str | None, str]:
        """Split a response into (thought, content); the thought is None where there is none.

        Args:
            opened: The prompt ended in the opening of the thought. Text without its end is then all thought.
        """
        lead = text.lstrip()
        if lead.startswith(self.open):
            text = lead[len(self.open) :]
        elif not opened:
            return None, text
        thought, _, content = text.partition(self.close)
        return thought.strip("\n"), content.lstrip("\n")


THINK = ThoughtMarks("<think>", "</think>")
KNOWN = (
    THINK,
    ThoughtMarks("[THINK]", "[/THINK]"),  # Magistral
    ThoughtMarks("<seed:think>", "</seed:think>"),  # Seed-OSS
    ThoughtMarks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A, Command R7B
    ThoughtMarks("◁think▷", "◁/think▷"),  # Kimi
    ThoughtMarks("<thinking>", "</thinking>"),
    ThoughtMarks("<thought>", "</thought>"),
    ThoughtMarks("<reasoning>", "</reasoning>"),
)


def marks_in(source: str) -> ThoughtMarks | None:
    """Return the marks in a chat template's source."""
    return next((marks for marks in KNOWN if marks.open in source or marks.close in source), None)
