"""Render: a Conversation becomes a list of pieces, each learned or not, written by the template or by the data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmtune.data.image_marks import count_marks, split_marks
from llmtune.errors import TemplateError
from llmtune.templates.info import Context, Place, TemplateInfo
from llmtune.templates.tools import format_tool_calls, format_tool_results, format_tools
from llmtune.types import Conversation, LossOn, Message

__all__ = ["Piece", "learned_answers", "mark_learned", "render", "single_answer", "split_chat_sep"]

_PLACEHOLDER = re.compile(r"\{\{(SYSTEM|QUERY|ROUND0|ROUND1|ROUND)\}\}")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the rendered conversation: text, or token ids and names of tokenizer attributes.

    `turn`: the index of the answer that it belongs to, where the model writes it; None for all else. `is_image`: it
    stands for an image, with the model's image token once.
    """

    content: Context
    learned: bool = False
    from_data: bool = False
    turn: int | None = None
    is_image: bool = False


def learned_answers(conversation: Conversation) -> list[int]:
    """Indices, among the turns, of the answers that are learned."""
    return [index for index, turn in enumerate(conversation.turns) if turn.role == "assistant" and turn.loss]


def mark_learned(conversation: Conversation, loss_on: LossOn) -> Conversation:
    """Mark the answers that `--loss_on` asks for; `auto` keeps the marks of the row."""
    if loss_on in ("auto", "everything"):
        return conversation
    answers = [index for index, turn in enumerate(conversation.turns) if turn.role == "assistant"]
    return _with_learned(conversation, set(answers[-1:] if loss_on == "last" else answers))


def single_answer(conversation: Conversation, answer: int) -> Conversation:
    """The conversation up to one answer, which alone is learned."""
    num_kept = len(conversation.messages) - len(conversation.turns) + answer + 1
    kept = replace(conversation, messages=conversation.messages[:num_kept])
    kept = replace(kept, images=conversation.images[: count_marks(kept)])  # those of later questions are not shown
    return _with_learned(kept, {answer})


def _with_learned(conversation: Conversation, answers: set[int]) -> Conversation:
    before = len(conversation.messages) - len(conversation.turns)
    messages = [replace(message, loss=index - before in answers) for index, message in enumerate(conversation.messages)]
    return replace(conversation, messages=tuple(messages))


def render(
    info: TemplateInfo,
    conversation: Conversation,
    *,
    system: str | None = None,
    learn_everything: bool = False,
    generation: bool = False,
    images: bool = False,
) -> list[Piece]:
    """Write a conversation as the template has it.

    Args:
        system: For a row without a system text of its own; None means the template's default.
        learn_everything: Learn the prompts as well as the answers.
        generation: End where the model begins to write: a last answer is left out.
        images: Write `info.image` for each mark of an image in a question; else marks are text.

    Raises:
        TemplateError: The template has no place for a system text, a second turn or tools.
    """
    turns = list(conversation.turns)
    learned = set() if generation else set(learned_answers(conversation))
    if generation and turns and turns[-1].role == "assistant":
        turns.pop()
    text = _system_text(info, conversation, system)
    pieces = list(_contexts(info.prefix, {}, text))
    if len(turns) == 1 and turns[0].role == "assistant":  # plain text, no question
        pieces += _answer(info, turns, 0, learned=0 in learned)
    elif turns:
        pieces += _turns(info, turns, learned, text, info.image if images else "")
        if info.answer_prefix and turns[-1].role != "assistant":
            pieces.append(Piece(info.answer_prefix))
    if learn_everything and not generation:
        pieces = [replace(piece, learned=not piece.is_image) for piece in pieces]
    return pieces


def _turns(
    info: TemplateInfo, turns: list[Message], learned: set[int], system: str | None, image: str
) -> Iterator[Piece]:
    if info.chat_sep is None and sum(turn.role == "assistant" for turn in turns[:-1]) > 0:
        raise TemplateError("this template takes one question and one answer, and the row has more turns")
    round_number = 0
    index = 0
    while index < len(turns):
        if turns[index].role == "assistant":
            yield from _answer(info, turns, index, learned=index in learned)
            index += 1
            continue
        end = index
        while end < len(turns) and turns[end].role != "assistant":
            end += 1
        is_last = not any(turn.role == "user" for turn in turns[end:])
        values = _values(_question(info, turns[index:end]), round_number)
        is_user = turns[index].role == "user"
        yield from _contexts(info.prompt, values, system if is_last and is_user else None, image if is_user else "")
        round_number += 1
        index = end


def _question(info: TemplateInfo, messages: list[Message]) -> str:
    if messages[0].role == "user":
        return messages[0].content.strip() if info.strip else messages[0].content
    return format_tool_results(info.tool_format, [message.content for message in messages])


def _contexts(
    contexts: tuple[Context, ...], values: dict[str, str], system: str | None, image: str = ""
) -> Iterator[Piece]:
    for context in contexts:
        if not isinstance(context, str):
            yield Piece(context)
        elif "{{SYSTEM}}" not in context:
            yield from _substitute(context, values, image)
        elif system is not None:
            yield from _substitute(context, values | {"SYSTEM": system}, image)


def _values(query: str, round_number: int) -> dict[str, str]:
    return {
        "QUERY": query,
        "ROUND": str(round_number + 1),
        "ROUND1": str(round_number + 1),
        "ROUND0": str(round_number),
    }


def _answer(info: TemplateInfo, turns: list[Message], index: int, *, learned: bool) -> Iterator[Piece]:
    message = turns[index]
    content = message.content.strip() if info.strip else message.content
    if len(turns) > 1:  # plain text stays as it is
        if info.format_answer is not None:
            content = info.format_answer(content, _place(turns, index))
        before, _, after = info.answer_format.partition("{{ANSWER}}")
        content = f"{before}{content}{after}"
    if message.tool_calls:
        content = format_tool_calls(info.tool_format, content, message.tool_calls)
    if info.answer_prefix and len(turns) > 1 and index == len(turns) - 1:
        yield Piece(info.answer_prefix)
    yield Piece(content, learned=learned, from_data=True, turn=index)
    if index == len(turns) - 1:
        for context in info.suffix:
            yield Piece(context, learned=learned, turn=index)
        return
    stop, rest = split_chat_sep(info)
    for context in stop:
        yield Piece(context, learned=learned, turn=index)
    for context in rest:
        yield Piece(context)


def _place(turns: list[Message], index: int) -> Place:
    if any(turn.role == "user" for turn in turns[index + 1 :]):
        return "earlier"
    return "last" if index == len(turns) - 1 else "current"


def split_chat_sep(info: TemplateInfo) -> tuple[tuple[Context, ...], tuple[Context, ...]]:
    """chat_sep as (what the model writes, what the template adds). The first part is empty or equals suffix."""
    rest = list(info.chat_sep or ())
    stop: list[Context] = []
    for context in info.suffix:
        if not rest or type(rest[0]) is not type(context) or rest[0][: len(context)] != context:
            return (), tuple(info.chat_sep or ())
        head, tail = rest[0][: len(context)], rest[0][len(context) :]
        stop.append(head)
        rest[0:1] = [tail] if tail else []
    return tuple(stop), tuple(rest)


def _substitute(context: str, values: dict[str, str], image: str) -> Iterator[Piece]:
    """Fill placeholders in one pass: what stands in the data is never read as a placeholder."""
    position = 0
    for match in _PLACEHOLDER.finditer(context):
        if match.group(1) not in values:
            continue
        if match.start() > position:
            yield Piece(context[position : match.start()])
        if match.group(1) == "QUERY" and image:
            for text in split_marks(values["QUERY"], joins_line=image.endswith("\n")):
                yield Piece(image, is_image=True) if text is None else Piece(text, from_data=True)
        else:
            yield Piece(values[match.group(1)], from_data=match.group(1) in ("QUERY", "SYSTEM"))
        position = match.end()
    if position < len(context):
        yield Piece(context[position:])


def _system_text(info: TemplateInfo, conversation: Conversation, system: str | None) -> str | None:
    text = conversation.system if conversation.system is not None else system
    if text is not None and not info.has_system_slot:
        raise TemplateError("this template has no place for a system text, and the row or --system gives one")
    if text is None:
        is_plain_text = len(conversation.turns) == 1 and conversation.turns[0].role == "assistant"
        text = None if is_plain_text else info.default_system
    if info.strip and info.strip_system and text is not None:
        text = text.strip()
    if conversation.tools:
        text = format_tools(info.tool_format, text, conversation.tools)
    return text
