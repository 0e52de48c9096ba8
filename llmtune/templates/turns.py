"""Turns of a response that calls tools: reading one, and the ids that the template writes between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmtune.errors import TemplateError
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.pieces import Piece
from llmtune.templates.tools import At, ToolFormat
from llmtune.types import Conversation, Message, ToolCall

CALL = ToolCall("function", {})
"""Stands for the calls of a turn, whose own text is what the model has written."""


@dataclass(frozen=True, slots=True)
class BetweenTurns:
    """The ids between a turn with calls and the next.

    Attributes:
        ids: Behind those that the model has written.
        opens_thought: They end in the opening of a thought.
    """

    ids: list[int]
    opens_thought: bool = False


def calls_several(tool_format: ToolFormat) -> bool:
    """Whether a turn of this format may have several calls."""
    try:
        tool_format.write_calls("", [CALL, CALL], At())
    except TemplateError:
        return False
    return True


def between_turns(
    template: ChatTemplate, conversation: Conversation, results: Sequence[Message], written: Sequence[int]
) -> BetweenTurns:
    """Return the ids from the end of a turn with calls to the beginning of the next one.

    Args:
        conversation: Up to the turn, without it.
        results: Of its calls.
        written: Ids of the turn as the model wrote it; where they lack the end that the template writes, it is added.

    Raises:
        TemplateError: The template cannot write them.
    """
    called = Conversation(
        (*conversation.messages, Message("assistant", "", tool_calls=(CALL,))),
        conversation.tools,
        conversation.media,
        conversation.template_kwargs,
    )
    end, rest = template.pieces_behind_calls(called, results)
    head = template.encode_pieces(end)
    ids = template.encode_pieces([*end, *rest])  # together: a tokenizer may treat the start of a text in its own way
    if _ends_with(written, head, end, template):
        ids = ids[len(head) :] if ids[: len(head)] == head else template.encode_pieces(rest)
    marks = template.thought_marks
    last = "".join(piece.content for piece in rest[-2:] if isinstance(piece.content, str))
    return BetweenTurns(ids, marks is not None and marks.is_open(last))


def _ends_with(written: Sequence[int], ids: list[int], end: Sequence[Piece], template: ChatTemplate) -> bool:
    if list(written[len(written) - len(ids) :]) == ids:
        return True
    text = "".join(piece.content for piece in end if isinstance(piece.content, str)).strip()
    return bool(text) and text in str(template.tokenizer.decode(list(written)))
