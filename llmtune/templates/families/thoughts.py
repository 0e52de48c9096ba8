"""How families with thoughts write answers: what is between <think> and </think>, and when it is left out.

Each has two forms: of a content that may hold its thought, and of a thought that the data gives apart.
"""

from __future__ import annotations

from llmtune.errors import TemplateError
from llmtune.templates.info import Place

__all__ = [
    "answer_without_thought",
    "continue_thought",
    "continue_thought_or_keep",
    "refuse_thought",
    "think_before_answer",
    "write_continued_thought",
    "write_continued_thought_or_keep",
    "write_thought",
]


def think_before_answer(content: str, place: Place) -> str:
    """Qwen3: the answer to the last question carries its thoughts, if only empty ones; earlier answers lose theirs."""
    thought, answer = _split_thought(content)
    if place == "earlier" or (place == "current" and not thought):
        return answer
    return write_thought(thought, answer, place)


def write_thought(thought: str, content: str, place: Place) -> str:
    if place == "earlier" or (place == "current" and not thought):
        return content
    return _block(thought) + content.lstrip("\n")


def answer_without_thought(content: str, place: Place) -> str:
    """Qwen3 with thinking switched off: the prompt ends with the empty thoughts, the answer follows them."""
    thought, answer = _split_thought(content)
    return refuse_thought(thought, answer, place)


def refuse_thought(thought: str, content: str, place: Place) -> str:
    if thought and place != "earlier":  # of earlier answers every template drops it
        raise TemplateError("an answer holds thoughts (<think>), which qwen3-nothinking leaves out; use qwen3")
    return content.lstrip("\n") if place == "last" else content


def continue_thought(content: str, place: Place) -> str:
    """Where the prompt ends with <think>: the last answer goes on with its thoughts, if only empty ones."""
    if place != "last":
        return content.rpartition("</think>")[2].lstrip("\n")
    return write_continued_thought(*_split_thought(content), place)


def write_continued_thought(thought: str, content: str, place: Place) -> str:
    if place != "last":
        return content
    return _block(thought).removeprefix("<think>\n") + content.lstrip("\n")


def continue_thought_or_keep(content: str, place: Place) -> str:
    """Like `continue_thought`; answers since the last question keep the thoughts that they have."""
    return think_before_answer(content, place) if place == "current" else continue_thought(content, place)


def write_continued_thought_or_keep(thought: str, content: str, place: Place) -> str:
    return (write_thought if place == "current" else write_continued_thought)(thought, content, place)


def _block(thought: str) -> str:
    return "<think>\n" + thought.strip("\n") + "\n</think>\n\n"


def _split_thought(content: str) -> tuple[str, str]:
    if "</think>" not in content:
        return "", content
    head, *_, tail = content.split("</think>")
    return head.rstrip("\n").split("<think>")[-1].lstrip("\n"), tail.lstrip("\n")
