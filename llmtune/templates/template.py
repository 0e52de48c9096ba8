"""Render a Conversation into pieces, each trainable or not, written by the template or by the data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from llmtune.data.image_marks import count_marks, split_marks
from llmtune.errors import TemplateError
from llmtune.templates.info import Place, TemplateInfo
from llmtune.templates.pieces import Context, Piece
from llmtune.templates.tools.info import At, ToolFormat
from llmtune.types import Conversation, Json, LossOn, Message

_PLACEHOLDER = re.compile(r"\{\{(SYSTEM|QUERY|ROUND0|ROUND1|ROUND)\}\}")


def trainable_answers(conversation: Conversation) -> list[int]:
    """Return the indices, among the turns, of the trainable assistant turns."""
    return [index for index, turn in enumerate(conversation.turns) if turn.role == "assistant" and turn.loss]


def mark_trainable(conversation: Conversation, loss_on: LossOn) -> Conversation:
    """Mark the turns that `--loss_on` selects; `auto` keeps the marks of the row."""
    if loss_on in ("auto", "everything"):
        return conversation
    answers = [index for index, turn in enumerate(conversation.turns) if turn.role == "assistant"]
    return _with_trainable(conversation, set(answers[-1:] if loss_on == "last" else answers))


def single_answer(conversation: Conversation, answer: int) -> Conversation:
    """Return the conversation up to one assistant turn, the only trainable one."""
    num_kept = len(conversation.messages) - len(conversation.turns) + answer + 1
    kept = replace(conversation, messages=conversation.messages[:num_kept])
    kept = replace(kept, media=conversation.media[: count_marks(kept)])  # images of later questions are dropped
    return _with_trainable(kept, {answer})


def _with_trainable(conversation: Conversation, answers: set[int]) -> Conversation:
    before = len(conversation.messages) - len(conversation.turns)
    messages = [replace(message, loss=index - before in answers) for index, message in enumerate(conversation.messages)]
    return replace(conversation, messages=tuple(messages))


def render(
    info: TemplateInfo,
    conversation: Conversation,
    *,
    system: str | None = None,
    train_everything: bool = False,
    generation: bool = False,
    images: bool = False,
) -> list[Piece]:
    """Render a conversation.

    Args:
        system: For a row without a system prompt; None: the template's default.
        train_everything: Prompts are trainable, too.
        generation: End where the generation starts: a last assistant turn is omitted.
        images: Write `info.image` for each mark of an image in a question; else marks are text.

    Raises:
        TemplateError: The template has no slot for a system prompt, a second turn or tools.
    """
    turns = list(conversation.turns)
    trainable = set() if generation else set(trainable_answers(conversation))
    if generation and turns and turns[-1].role == "assistant":
        turns.pop()
    row = _Rendering(info, turns, trainable, conversation.tools, system_prompt(info, conversation, system))
    if row.tools and row.format.tools_in == "system" and row.format.write_tools is not None:
        row.system = row.format.write_tools(row.system, row.tools)
    row.image = info.image if images else ""
    prefix = info.tool_prefix if conversation.tools and info.tool_prefix is not None else info.prefix
    pieces = list(_prefix(row, prefix))
    if len(turns) == 1 and turns[0].role == "assistant":  # plain text, no question
        pieces += _answer(row, 0)
    elif turns:
        pieces += _turns(row)
        if info.answer_prefix and turns[-1].role != "assistant":
            pieces.append(Piece(info.answer_prefix))
    if train_everything and not generation:
        pieces = [replace(piece, trainable=piece.media is None, weight=1.0) for piece in pieces]
    return pieces


@dataclass(slots=True)
class _Rendering:
    """State of rendering.

    `num_calls`, `num_results`: calls and results written so far. `last_question`, `last_result`: indices of turns,
    computed once: searching the rest of the turns at each turn would take time quadratic in their number.
    """

    info: TemplateInfo
    turns: list[Message]
    trainable: set[int]
    tools: tuple[Json, ...]
    system: str | None
    image: str = ""
    num_calls: int = field(default=0, init=False)
    num_results: int = field(default=0, init=False)
    last_question: int = field(default=-1, init=False)
    last_result: int = field(default=-1, init=False)

    def __post_init__(self) -> None:
        for index, turn in enumerate(self.turns):
            if turn.role == "user":
                self.last_question = index
            elif turn.role == "tool":
                self.last_result = index

    @property
    def format(self) -> ToolFormat:
        found = self.info.tools
        if found is None:
            raise TemplateError(
                "this template has no tool format, and the row uses tools; --tool_format KEY sets one (llmtune "
                "list tool_formats), --template_type auto uses the tokenizer's own chat template"
            )
        return found


def _prefix(row: _Rendering, prefix: tuple[Context, ...]) -> Iterator[Piece]:
    """Render the text before the first question. Tools in a turn of their own come before the system prompt."""
    if not row.tools or row.format.write_tools_apart is None or row.format.tools_in != "system":
        yield from _contexts(prefix, {}, row.system)
        return
    place = next((at for at, one in enumerate(prefix) if isinstance(one, str) and "{{SYSTEM}}" in one), len(prefix))
    yield from _contexts(prefix[:place], {}, None)
    yield from row.format.write_tools_apart(row.tools)
    yield from _contexts(prefix[place:], {}, row.system)


def _turns(row: _Rendering) -> Iterator[Piece]:
    turns = row.turns
    if row.info.chat_sep is None and sum(turn.role == "assistant" for turn in turns[:-1]) > 0:
        raise TemplateError("this template supports one question and one response, and the row has more turns")
    round_number = 0
    index = 0
    while index < len(turns):
        if turns[index].role == "assistant":
            yield from _answer(row, index)
            index += 1
            continue
        end = index
        while end < len(turns) and turns[end].role != "assistant":
            end += 1
        if turns[index].role == "user":
            yield from _question(row, index, end, round_number)
        else:
            yield from _results(row, turns[index:end], round_number)
        round_number += 1
        index = end


def _question(row: _Rendering, index: int, end: int, round_number: int) -> Iterator[Piece]:
    is_first, is_last = index == 0, row.last_question < end
    text = row.turns[index].content.strip() if row.info.strip else row.turns[index].content
    if row.tools:
        tools = row.format
        if tools.write_tools_apart is not None and tools.tools_in == "last question" and is_last:
            yield from tools.write_tools_apart(row.tools)
        here = (tools.tools_in == "first question" and is_first) or (tools.tools_in == "last question" and is_last)
        if tools.write_tools is not None and here:
            text = tools.write_tools(text, row.tools)
    # Tool results after a question take over its system prompt, where it is part of the question.
    system = row.system if is_last and row.last_result < end else None
    yield from _contexts(row.info.prompt, _values(text, round_number), system, row.image)


def _results(row: _Rendering, turns: list[Message], round_number: int) -> Iterator[Piece]:
    """Render tool results, up to where the generation continues."""
    tools = row.format
    results = [turn.content for turn in turns]
    if tools.write_results is not None:
        ids = tuple(turn.tool_call_id for turn in turns)
        yield from tools.write_results(results, At(row.num_results, ids=ids))
    else:
        assert tools.write_results_as_question is not None
        text = tools.write_results_as_question(results)
        yield from _contexts(row.info.prompt, _values(text, round_number), None)
    row.num_results += len(results)


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


def _answer(row: _Rendering, index: int) -> Iterator[Piece]:
    info, turns, message = row.info, row.turns, row.turns[index]
    trainable, is_last = index in row.trainable, index == len(turns) - 1
    if info.answer_prefix and len(turns) > 1 and is_last:
        yield Piece(info.answer_prefix)
    for piece in _written(row, index):
        yield replace(piece, trainable=trainable, turn=index, weight=message.weight)
    call_end = row.format.call_end if message.tool_calls else None
    stop, rest = split_chat_sep(info)
    if call_end is not None:  # the results continue the same turn
        stop, rest = (call_end,), ()
    elif is_last:
        stop, rest = info.suffix, ()
    for context in stop:
        yield Piece(context, trainable=trainable, turn=index, weight=message.weight)
    for context in rest:
        yield Piece(context)


def _written(row: _Rendering, index: int) -> list[Piece]:
    """Render the text that the model writes for a response, up to the end of its turn."""
    info, turns, message = row.info, row.turns, row.turns[index]
    content = message.content.strip() if info.strip else message.content
    if len(turns) > 1:  # plain text stays as it is
        place = _place(row, index)
        if message.reasoning is not None and info.write_thought is not None:
            content = info.write_thought(message.reasoning, content, place)
        elif info.format_answer is not None:
            content = info.format_answer(content, place)
        before, _, after = info.answer_format.partition("{{ANSWER}}")
        content = f"{before}{content}{after}"
    at = At(row.num_calls, after_results=index > 0 and turns[index - 1].role == "tool")
    if message.tool_calls:
        row.num_calls += len(message.tool_calls)
        return row.format.write_calls(content, message.tool_calls, at)
    if row.tools and row.format.write_answer is not None:
        content = row.format.write_answer(content, at)
    return [Piece(content, from_data=True)]


def _place(row: _Rendering, index: int) -> Place:
    if index < row.last_question:
        return "earlier"
    return "last" if index == len(row.turns) - 1 else "current"


def split_chat_sep(info: TemplateInfo) -> tuple[tuple[Context, ...], tuple[Context, ...]]:
    """Split chat_sep into (the model's text, the template's text). The first part is empty or equals suffix."""
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
    """Fill placeholders in one pass: data is never read as a placeholder."""
    position = 0
    for match in _PLACEHOLDER.finditer(context):
        if match.group(1) not in values:
            continue
        if match.start() > position:
            yield Piece(context[position : match.start()])
        if match.group(1) == "QUERY" and image:
            for text in split_marks(values["QUERY"], joins_line=image.endswith("\n")):
                yield Piece(image, media="image") if text is None else Piece(text, from_data=True)
        else:
            yield Piece(values[match.group(1)], from_data=match.group(1) in ("QUERY", "SYSTEM"))
        position = match.end()
    if position < len(context):
        yield Piece(context[position:])


def system_prompt(info: TemplateInfo, conversation: Conversation, system: str | None) -> str | None:
    """Return a conversation's system prompt: its own, `system`, or the template's default."""
    text = conversation.system if conversation.system is not None else system
    if text is not None and not info.has_system_slot:
        raise TemplateError("this template has no slot for a system prompt, and the row or --system gives one")
    if text is None:
        is_plain_text = len(conversation.turns) == 1 and conversation.turns[0].role == "assistant"
        text = None if is_plain_text else info.default_system
    if info.strip and info.strip_system and text is not None:
        text = text.strip()
    return text
