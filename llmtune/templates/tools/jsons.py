"""JSON as chat templates write it, and calls as models write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmtune.types import Json, ToolCall

__all__ = ["arguments_text", "call_id", "call_of", "calls_at_start", "function_of", "to_json"]


def to_json(value: Json, *, indent: int | None = None) -> str:
    """The form of the `tojson` filter that transformers gives to chat templates."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def arguments_text(call: ToolCall) -> str:
    """The arguments as JSON; a text that stood in the data stays as it is."""
    return call.arguments if isinstance(call.arguments, str) else to_json(call.arguments)


def call_id(number: int) -> str:
    """The nine characters by which a result names its call in Mistral's template; rows have none, so they count."""
    return f"{number:09d}"


def function_of(tool: Json) -> Mapping[str, Any]:
    """A schema without the frame {"type": "function", "function": ...} that it may stand in."""
    inner = tool.get("function") if isinstance(tool, Mapping) else None
    return inner if isinstance(inner, Mapping) else tool


def call_of(value: Json) -> ToolCall | None:
    """{"name": ..., "arguments" or "parameters": ...} as a call; None where it is something else."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    arguments = next((value[key] for key in ("arguments", "parameters") if key in value), None)
    return ToolCall(value["name"], arguments) if isinstance(arguments, Mapping | str) else None


def calls_at_start(text: str) -> tuple[ToolCall, ...]:
    """The calls that a text consists of: JSON objects or lists of them, one behind the other, `;` between them."""
    decoder = json.JSONDecoder()
    calls: list[ToolCall] = []
    rest = text.strip()
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            return ()
        found = [call_of(item) for item in (value if isinstance(value, list) else [value])]
        if not found or None in found:
            return ()
        calls += [call for call in found if call is not None]
        rest = rest[end:].lstrip(" \n;")
    return tuple(calls)
