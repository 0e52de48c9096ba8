"""Normalise and check the order of turns: [system] (user | tool ...) assistant ..."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from llmtune.data.contents import Found
from llmtune.errors import RowError
from llmtune.types import Message

__all__ = ["arrange", "check_turns"]

BLANK_LINE = "\n\n"
JOINED = "consecutive turns of one role were joined by a blank line"
SYSTEM_LATER = "a later system message was joined to the user message beside it"
OPENING = "an assistant message before the first user message was omitted"


def arrange(messages: Sequence[Message], found: Found) -> list[Message]:
    """Bring turns into the order that every template writes, where that keeps the meaning; `found` notes the changes.

    - Consecutive turns of one side become one, with a blank line between them, and so do leading system messages.
    - A later system message joins the question before or after it, in its place.
    - An assistant message before the first question is omitted, as it responds to nothing.

    Raises:
        RowError: Assistant messages of one turn that differ in what is trainable.
    """
    made: list[Message] = []
    for message in messages:
        before = made[-1] if made else None
        joined = None if before is None else _joined(before, message, len(made) == 1)
        if joined is None:
            made.append(message)
            continue
        made[-1], note = joined
        found.notes[note] = None
    first = int(bool(made) and made[0].role == "system")
    opening = tuple(message.role for message in made[first : first + 2]) == ("assistant", "user")
    if opening and not made[first].tool_calls:
        found.notes[OPENING] = None
        del made[first]
    return made


def _joined(before: Message, message: Message, is_first: bool) -> tuple[Message, str] | None:
    """Return two messages joined, and the note on it; None where they stay two."""
    roles = (before.role, message.role)
    if roles == ("system", "system"):
        return _with_text(before, before, message), JOINED
    if roles == ("assistant", "assistant"):
        return _answers(before, message), JOINED
    if roles == ("user", "user") and before.name == message.name:
        return _with_text(message, before, message), JOINED
    if roles == ("user", "system"):
        return _with_text(before, before, message), SYSTEM_LATER
    if roles == ("system", "user") and not is_first:
        return _with_text(message, before, message), SYSTEM_LATER
    return None


def _with_text(kept: Message, first: Message, second: Message) -> Message:
    return dataclasses.replace(kept, content=BLANK_LINE.join(filter(None, (first.content, second.content))))


def _answers(first: Message, second: Message) -> Message:
    if first.loss != second.loss:
        raise RowError("two assistant messages are one turn, but only one of them is trainable")
    if first.weight != second.weight:
        raise RowError("two assistant messages are one turn, but have different weights in the loss")
    if first.tool_calls and second.content:
        raise RowError("an assistant message follows tool calls; expected their results")
    if first.content and second.reasoning:
        raise RowError("an assistant message with a thought follows the text of the same turn")
    thoughts = [thought for thought in (first.reasoning, second.reasoning) if thought is not None]
    reasoning = BLANK_LINE.join(filter(None, thoughts)) if thoughts else None
    calls = first.tool_calls + second.tool_calls
    return dataclasses.replace(_with_text(first, first, second), tool_calls=calls, reasoning=reasoning)


def check_turns(messages: Sequence[Message], *, need_answer: bool) -> None:
    """Raise a RowError if the turns are not [system] (user | tool ...) assistant ..., beginning with a user.

    A single assistant message is text to train on. Without `need_answer` the last assistant turn may be missing.
    """
    turns = list(messages[1:] if messages and messages[0].role == "system" else messages)
    if not turns:
        raise RowError("there is no user or assistant message")
    if len(turns) == 1 and turns[0].role == "assistant":
        return
    if turns[0].role != "user":
        raise RowError(f"the first turn is {_article(turns[0].role)} message, not a user message")
    for before, after in itertools.pairwise(turns):
        if after.role == "system":
            raise RowError("a system message comes after the first message, with no user message beside it")
        expected = ("assistant",) if before.role == "user" else ("assistant", "tool")
        if before.role == "assistant":
            expected = ("user", "tool")
        if after.role not in expected:
            raise RowError(
                f"{_article(after.role)} message follows {_article(before.role)} message; "
                f"expected {' or '.join(expected)}"
            )
    if need_answer and turns[-1].role != "assistant":
        raise RowError(
            f"the conversation ends with {_article(turns[-1].role)} message: there is no response to train on"
        )


def _article(role: str) -> str:
    return f"an {role}" if role == "assistant" else f"a {role}"
