"""Responses that continue the served prompt, where the template's own text begins differently.

DeepSeek-R1's opens the thought in the prompt and drops it from responses; V3.1's closes it there; Mistral-Nemo's writes
the system prompt at the unanswered question, and nowhere after the response; Nemotron-3 opens a thought with a newline
in the prompt and without one before a response that has none.
"""

from __future__ import annotations

from llmtune.errors import TemplateError
from llmtune.templates.own_render import SENTINEL
from llmtune.templates.stops import common_start
from llmtune.templates.thoughts import THINK, ThoughtMarks
from llmtune.types import Message

__all__ = ["closed_thought", "turn_behind"]


def turn_behind(
    prompt: str, text: str, plain: str, message: Message, marks: ThoughtMarks | None, *, question: str
) -> str:
    """Return the assistant turn, and the template's text after it, as continuations of `prompt`.

    Args:
        text: The conversation with the response.
        plain: The same with SENTINEL as the response: the text before it is the head of the turn.
        question: The conversation without the response and without a generation prompt.

    Raises:
        TemplateError: The turn cannot be found in the text, or it has a thought and the prompt has closed it.
    """
    marks = marks or THINK
    turn = _turn(prompt, text, plain, marks, question)
    opening = marks.opening_of(prompt)
    if turn.startswith(opening):
        return turn[len(opening) :]
    if marks.close in opening:
        return _behind_closed(turn, marks)
    return _behind_open(opening, turn, message, marks)


def closed_thought(message: Message, written: str, marks: ThoughtMarks) -> str:
    """Return a response whose template does not end the thought that its prompt opened."""
    thought = message.reasoning or ""
    return f"{thought}\n{marks.close}\n\n{written.lstrip(chr(10))}"


def _turn(prompt: str, text: str, plain: str, marks: ThoughtMarks, question: str) -> str:
    """Return the template's text of the response after the head of its turn, to the end of the text."""
    head, found, _ = plain.rpartition(SENTINEL)
    if not found:
        raise TemplateError("the tokenizer's chat template drops the last response of this row")
    head = head.removesuffix(marks.opening_of(head))
    if text.startswith(head):
        return text[len(head) :]
    # Texts and calls begin differently; the head is what a prompt adds to the question.
    asked = prompt.removesuffix(marks.opening_of(prompt))
    added = asked[len(question) :] if asked.startswith(question) else ""
    common = common_start(text, plain)
    _, found, after = common.rpartition(added) if added else ("", "", "")
    if not found:
        raise TemplateError(
            "the tokenizer's chat template writes this response where it cannot be separated from its prompt"
        )
    return after + text[len(common) :]


def _behind_closed(turn: str, marks: ThoughtMarks) -> str:
    """Continue a prompt that ends with an empty thought, or with the end of a thought."""
    rest = turn.removeprefix(marks.open).lstrip()
    if rest.startswith(marks.close):  # the template writes the empty thought with other white space
        return rest[len(marks.close) :].lstrip("\n")
    if turn.startswith(marks.open):
        raise TemplateError(
            "the prompt closes the thought before the response, and the row's response has one; "
            "--chat_template_kwargs (or the row's chat_template_kwargs) enables thoughts where the template has a "
            "variable for them"
        )
    return turn


def _behind_open(opening: str, turn: str, message: Message, marks: ThoughtMarks) -> str:
    """Continue a prompt that opens the thought: the response continues it, if only to end it."""
    gap = opening[len(marks.open) :]
    if turn.startswith(marks.open):  # with other white space after it
        return turn[len(marks.open) :].lstrip("\n") if gap else turn[len(marks.open) :]
    thought, content = message.reasoning, message.content
    if thought is None and content.startswith(marks.open) and marks.close in content:
        # The template drops the thought at the start of the content: continue with the data's text.
        inside, _, answer = content[len(marks.open) :].partition(marks.close)
        blank = answer[: len(answer) - len(answer.lstrip())]
        rest = turn.removeprefix(marks.close).lstrip()
        if rest.startswith(content.strip()):  # kept whole, after the template's own end of a thought
            return rest[len(marks.open) :].removeprefix(gap)
        if rest.startswith(answer.strip()):
            return inside.removeprefix(gap) + marks.close + blank + rest
    if thought is None and marks.close in content:
        thought = marks.split(content, opened=True)[0]
    thought = thought or ""
    if turn.startswith(marks.close):
        return thought + (gap if thought and not thought.endswith(gap) else "") + turn
    return f"{thought}\n{marks.close}\n\n{turn.lstrip(chr(10))}"
