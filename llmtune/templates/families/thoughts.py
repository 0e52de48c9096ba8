"""Formats of responses by family: the text between <think> and </think>, and when it is omitted.

Each has two forms: for a content that may contain its thought, and for a thought given separately.
"""

from __future__ import annotations

from llmtune.errors import TemplateError
from llmtune.templates.info import Place


def think_before_answer(content: str, place: Place) -> str:
    """Qwen3: the response to the last question has a thought, possibly empty; earlier responses have none."""
    thought, answer = _split_thought(content)
    if place == "earlier" or (place == "current" and not thought):
        return answer
    return write_thought(thought, answer, place)


def write_thought(thought: str, content: str, place: Place) -> str:
    if place == "earlier" or (place == "current" and not thought):
        return content
    return _block(thought) + content.lstrip("\n")


def answer_without_thought(content: str, place: Place) -> str:
    """Qwen3 without thinking: the prompt ends with an empty thought, the response follows it."""
    thought, answer = _split_thought(content)
    return refuse_thought(thought, answer, place)


def refuse_thought(thought: str, content: str, place: Place) -> str:
    if thought and place != "earlier":  # of earlier answers every template drops it
        raise TemplateError("a response has a thought (<think>), which qwen3-nothinking omits; use qwen3")
    return content.lstrip("\n") if place == "last" else content


def continue_thought(content: str, place: Place) -> str:
    """Prompt that ends with <think>: the last response continues the thought, possibly an empty one."""
    if place != "last":
        return content.rpartition("</think>")[2].lstrip("\n")
    return write_continued_thought(*_split_thought(content), place)


def write_continued_thought(thought: str, content: str, place: Place) -> str:
    if place != "last":
        return content
    return _block(thought).removeprefix("<think>\n") + content.lstrip("\n")


def continue_thought_or_keep(content: str, place: Place) -> str:
    """Like `continue_thought`; responses since the last question keep their thoughts."""
    return think_before_answer(content, place) if place == "current" else continue_thought(content, place)


def write_continued_thought_or_keep(thought: str, content: str, place: Place) -> str:
    return (write_thought if place == "current" else write_continued_thought)(thought, content, place)


def without_white_space(content: str, place: Place) -> str:
    """Keep white space at the ends of questions."""
    return content.strip()


def _block(thought: str) -> str:
    return "<think>\n" + thought.strip("\n") + "\n</think>\n\n"


def _split_thought(content: str) -> tuple[str, str]:
    if "</think>" not in content:
        return "", content
    head, *_, tail = content.split("</think>")
    return head.rstrip("\n").split("<think>")[-1].lstrip("\n"), tail.lstrip("\n")
