"""Write JSON like chat templates, and parse calls written by models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmtune.types import Json, ToolCall

__all__ = ["arguments_text", "call_id", "call_of", "calls_at_start", "function_of", "to_json"]


def to_json(value: Json, *, indent: int | None = None) -> str:
    """Return JSON in the form of the `tojson` filter that transformers gives to chat templates."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def arguments_text(call: ToolCall) -> str:
    """Return the arguments as JSON; text arguments of the data stay as they are."""
    return call.arguments if isinstance(call.arguments, str) else to_json(call.arguments)


def call_id(number: int) -> str:
    """Return a call's id in the nine characters that Mistral's template requires: a counter, as rows have none."""
    return f"{number:09d}"


def function_of(tool: Json) -> Mapping[str, Any]:
    """Return a schema without the wrapper {"type": "function", "function": ...} that it may have."""
    inner = tool.get("function") if isinstance(tool, Mapping) else None
    return inner if isinstance(inner, Mapping) else tool


def call_of(value: Json) -> ToolCall | None:
    """Return {"name": ..., "arguments" or "parameters": ...} as a call; None for anything else."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    arguments = next((value[key] for key in ("arguments", "parameters") if key in value), None)
    return ToolCall(value["name"], arguments) if isinstance(arguments, Mapping | str) else None


def calls_at_start(text: str) -> tuple[ToolCall, ...]:
    """Return the calls that a text consists of: JSON objects or lists of them in a row, separated by `;`."""
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
