"""Check that the content, thought and calls of every trainable turn are in its trained text.

A chat template silently drops parts that it has no place for; the row would then train another response than its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from llmtune.templates.pieces import Piece
from llmtune.templates.template import trainable_answers
from llmtune.templates.thoughts import THINK, ThoughtMarks
from llmtune.types import Conversation, Message


def dropped_part(
    pieces: Sequence[Piece], conversation: Conversation, marks: ThoughtMarks | None, *, everything: bool = False
) -> str | None:
    """Return the first part of a trainable turn that its trained text lacks, for the report; None if all are there.

    Args:
        marks: The template's marks of thoughts; None where it writes none.
        everything: Prompts are trainable, too: the last response is searched in the whole text.
    """
    answers = trainable_answers(conversation)
    if not answers:
        return None
    turns = conversation.turns
    if everything:
        whole = "".join(_text(piece) for piece in pieces)
        return _dropped(turns[answers[-1]], whole, whole, marks or THINK)
    for answer, (before, trained) in _trained_texts(pieces).items():
        content = trained
        if marks is not None:
            content = marks.split(trained, opened=marks.is_open(before))[1]
        found = _dropped(turns[answer], trained, content, marks or THINK)
        if found is not None:
            return found
    return None


def _trained_texts(pieces: Sequence[Piece]) -> dict[int, tuple[str, str]]:
    """Return, by turn, (the end of the prompt before it, its trained text)."""
    found: dict[int, tuple[str, list[str]]] = {}
    before = ""
    for piece in pieces:
        text = _text(piece)
        if piece.turn is not None and piece.trainable:
            found.setdefault(piece.turn, (before, []))[1].append(text)
        else:
            before = text
    return {turn: (before, "".join(texts)) for turn, (before, texts) in found.items()}


def _dropped(message: Message, trained: str, content: str, marks: ThoughtMarks) -> str | None:
    """Return the part that the text lacks. `content`: the trained text after the thought, as a server parses it."""
    thought, answer = message.reasoning, message.content
    if thought is None and marks.close in answer:  # a thought inside the content, which may lack its opening
        thought, answer = marks.split(answer, opened=True)
    for call in message.tool_calls:
        if not _stands(call.name, content):
            return f"its template drops the row's call of {call.name!r} here"
    # In Command R7B's format, text before a call is the thought.
    if not _stands(answer, trained if message.tool_calls else content):
        return f"its template drops the content of a response here ({_short(answer)})"
    if thought is not None and not _stands(thought, trained):
        return (
            f"its template drops the thought of a response here ({_short(thought)}); "
            "use a template with thoughts (--template_type), enable them with --chat_template_kwargs, or write the "
            "thought into the content"
        )
    return None


def _stands(part: str, text: str) -> bool:
    """Return whether a text contains a part, ignoring white space, or as JSON where the template writes it so."""
    part = part.strip()
    if not part or part in text:
        return True
    bare = "".join(text.split())
    spellings = (part, json.dumps(part, ensure_ascii=False)[1:-1], json.dumps(part)[1:-1])
    return any("".join(spelling.split()) in bare for spelling in spellings)


def _text(piece: Piece) -> str:
    return piece.content if isinstance(piece.content, str) else ""


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 40 else text[:37] + "...")
