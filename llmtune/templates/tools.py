"""How tools, tool calls and their results are written into the text of a conversation.

The one format so far is Hermes, as Qwen2.5 and Qwen3 write it in the chat templates of their tokenizers:
schemas in the system text, calls as JSON between <tool_call> tags, results between <tool_response> tags.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from llmtune.errors import TemplateError
from llmtune.types import Json, ToolCall

__all__ = ["format_tool_calls", "format_tool_results", "format_tools"]

_HERMES_HEAD = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>"""
_HERMES_TAIL = """
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


def format_tools(tool_format: str | None, system: str | None, tools: Sequence[Json]) -> str:
    """The system text with the functions that the assistant may call."""
    _require(tool_format)
    schemas = "".join("\n" + _to_json(tool) for tool in tools)
    lead = "" if system is None else f"{system}\n\n"
    return f"{lead}{_HERMES_HEAD}{schemas}{_HERMES_TAIL}"


def format_tool_calls(tool_format: str | None, content: str, calls: Sequence[ToolCall]) -> str:
    """What the assistant writes: its text, then its calls, one below the other."""
    _require(tool_format)
    written = [
        f'<tool_call>\n{{"name": "{call.name}", "arguments": {_arguments(call)}}}\n</tool_call>' for call in calls
    ]
    # Qwen3 puts no newline between an empty answer's thoughts and its first call.
    lead = content if not content or content.endswith("</think>\n\n") else f"{content}\n"
    return lead + "\n".join(written)


def format_tool_results(tool_format: str | None, results: Sequence[str]) -> str:
    """What stands in the place of a question after the assistant's calls."""
    _require(tool_format)
    return "\n".join(f"<tool_response>\n{result}\n</tool_response>" for result in results)


def _arguments(call: ToolCall) -> str:
    return call.arguments if isinstance(call.arguments, str) else _to_json(call.arguments)


def _to_json(value: Json) -> str:
    # The form of the `tojson` filter that transformers gives to chat templates.
    return json.dumps(value, ensure_ascii=False)


def _require(tool_format: str | None) -> None:
    if tool_format is None:
        raise TemplateError(
            "this template has no format for tools, and the row uses them; --template_type auto writes them as the "
            "tokenizer's own chat template does"
        )
