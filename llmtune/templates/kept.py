"""Guard: every trainable answer's content, thought and calls stand in the text that is trained for it.

A chat template drops what it has no place for without a word; the row would then train another answer than its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from llmtune.templates.pieces import Piece
from llmtune.templates.template import learned_answers
from llmtune.templates.thoughts import THINK, ThoughtMarks
from llmtune.types import Conversation, Message

__all__ = ["dropped_part"]


def dropped_part(
    pieces: Sequence[Piece], conversation: Conversation, marks: ThoughtMarks | None, *, everything: bool = False
) -> str | None:
    """The first part of a trainable answer that its trained text lacks, named for the report; None where all stands.

    Args:
        marks: How the template writes thoughts; None where it writes none.
        everything: Prompts are trainable, too: the last answer is looked for in the whole text.
    """
    answers = learned_answers(conversation)
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
    """By turn: (the end of the prompt before its answer, the trained text of the answer)."""
    found: dict[int, tuple[str, list[str]]] = {}
    before = ""
    for piece in pieces:
        text = _text(piece)
        if piece.turn is not None and piece.learned:
            found.setdefault(piece.turn, (before, []))[1].append(text)
        else:
            before = text
    return {turn: (before, "".join(texts)) for turn, (before, texts) in found.items()}


def _dropped(message: Message, trained: str, content: str, marks: ThoughtMarks) -> str | None:
    """`content`: the trained text behind the thought, as a server's parser of thoughts gives it."""
    thought, answer = message.reasoning, message.content
    if thought is None and marks.close in answer:  # a thought inside the content, which may leave out its opening
        thought, answer = marks.split(answer, opened=True)
    for call in message.tool_calls:
        if not _stands(call.name, content):
            return f"its template writes no call of {call.name!r} here, which the row's answer makes"
    # What is said before a call is the thought in Command R7B's own words.
    if not _stands(answer, trained if message.tool_calls else content):
        return f"its template does not write the content of an answer here ({_short(answer)})"
    if thought is not None and not _stands(thought, trained):
        return (
            f"its template writes no thought here, and an answer of the row has one ({_short(thought)}); "
            "take a template with thoughts (--template_type), let --chat_template_kwargs switch them on, or write the "
            "thought into the content"
        )
    return None


def _stands(part: str, text: str) -> bool:
    """Whether a text holds a part: white space apart, and as JSON where the template writes it so."""
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
