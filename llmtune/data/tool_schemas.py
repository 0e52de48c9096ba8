"""Parse function schemas and tool calls of a row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmtune.data.values import check_depth, check_unicode, kind_of, parse_literal, without_nulls
from llmtune.errors import RowError
from llmtune.types import Json, ToolCall

__all__ = ["parse_calls", "parse_tools"]

PARAMETERS = ("parameters", "input_schema", "inputSchema")
"""Keys of a function's schema: OpenAI's, Anthropic's and MCP's."""


def parse_calls(value: Any, where: str) -> tuple[ToolCall, ...]:
    """Return the calls of a message: one or a list, each an object or JSON text."""
    what = f"the tool calls of {where}"
    if isinstance(value, str):
        value = parse_literal(value, what=what)
    items = [value] if isinstance(value, Mapping) else value
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise RowError(f"{what}: {kind_of(value)} where a call or a list of calls is expected")
    return tuple(_parse_call(item, what) for item in items)


def _parse_call(item: Any, what: str) -> ToolCall:
    if isinstance(item, str):
        item = parse_literal(item, what=what)
    inner = item.get("function") if isinstance(item, Mapping) else None
    fields = inner if isinstance(inner, Mapping) else item
    if not isinstance(fields, Mapping) or not isinstance(fields.get("name"), str):
        raise RowError(f"{what}: a call has no name; expected {{name, arguments}}, alone or under 'function'")
    arguments: Json = next((fields[key] for key in ("arguments", "parameters") if fields.get(key) is not None), {})
    check_depth(arguments, f"an argument of {what}")
    named = next((one["id"] for one in (item, fields) if one.get("id") not in (None, "")), None)
    identity = None if named is None else check_unicode(str(named), what)
    return ToolCall(check_unicode(fields["name"], what), _parse_arguments(arguments), identity)


def _parse_arguments(value: Any) -> Json:
    """Parse text that holds an object; text that is a number or a quoted string stays as it is."""
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return parsed if isinstance(parsed, dict) else value


def parse_tools(value: Any) -> tuple[Json, ...]:
    """Return function schemas from JSON text, a list of objects or of JSON texts, as OpenAI's clients send them.

    A bare function, `{"name": ..., "parameters": ...}`, is wrapped: {"type": "function", "function": ...}.
    Null members are dropped from objects (Arrow puts them there), not from JSON text.
    """
    if isinstance(value, str):
        value = parse_literal(value, what="tools") if value.strip() else []
    else:
        check_depth(value, "tools")
        value = without_nulls([value] if isinstance(value, Mapping) else list(value) if _is_list(value) else value)
    items = [value] if isinstance(value, Mapping) else value
    if items is None:
        return ()
    if not _is_list(items):
        raise RowError(f"tools holds {kind_of(value)}, not a list of function schemas")
    tools = tuple(parse_literal(item, what="a tool") if isinstance(item, str) else item for item in items)
    check_depth(tools, "tools")
    return tuple(_wrapped(tool) for tool in tools)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _wrapped(tool: Any) -> Json:
    if not isinstance(tool, Mapping):
        raise RowError(f"a tool is {kind_of(tool)}, not a function schema")
    if isinstance(tool.get("function"), Mapping):
        return tool if tool.get("type") else {"type": "function", **tool}
    schema = next((key for key in PARAMETERS if key in tool), None)
    if not isinstance(tool.get("name"), str) or not (schema or tool.get("type") in (None, "function")):
        return tool  # a tool of the server's own, `{"type": "web_search"}`
    function = {"parameters" if key == schema else key: part for key, part in tool.items() if key != "type"}
    return {"type": "function", "function": function}
