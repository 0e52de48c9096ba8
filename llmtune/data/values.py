"""Check and convert the values of a row's cells: texts, literals, JSON."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmtune.errors import RowError
from llmtune.types import Json, ToolCall

MAX_DEPTH = 100
"""Most levels of a schema, an argument or a result. Python's recursion limit follows soon after, first in templates."""

EXCERPT_CHARS = 80


def kind_of(value: Any) -> str:
    """Name the type of a wrong value, for users."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = ((str, "text"), ((int, float), "a number"), (Mapping, "an object"), ((list, tuple), "a list"))
    return next((name for types, name in names if isinstance(value, types)), type(value).__name__)


def is_null(value: Any) -> bool:
    """Return whether a value is null, or NaN, pandas' spelling of it."""
    return value is None or (isinstance(value, float) and value != value)


def parse_literal(text: str, *, what: str) -> Any:
    """Parse a text cell that holds JSON, or a Python literal.

    Raises:
        RowError: It is neither.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise RowError(f"{what} is text that is not JSON: {text[:40]!r}") from None


def check_unicode(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError(f"{where} holds half of a surrogate pair, which is not valid Unicode") from None
    return text


def check_depth(value: Any, what: str) -> None:
    """Raise a RowError if a value is nested too deeply for a template."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for item in level if isinstance(item, (Mapping, list, tuple)) for inner in _members(item)]
        if not level:
            return
    raise RowError(f"{what} is nested more than {MAX_DEPTH} levels deep")


def _members(value: Any) -> Any:
    return value.values() if isinstance(value, Mapping) else value


def json_text(value: Json, what: str) -> str:
    """Return the JSON text of a value.

    Raises:
        RowError: It cannot be written as JSON, or is nested too deeply.
    """
    check_depth(value, what)
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as err:
        raise RowError(f"{what} cannot be written as JSON: {err}") from err
    return check_unicode(text, what)


def text_or_none(row: Mapping[str, Any], key: str) -> str | None:
    """Return a text cell; numbers become text, an absent cell is None.

    Raises:
        RowError: The cell holds anything else.
    """
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise RowError(f"column {key!r} holds {kind_of(value)}, not text")
    return check_unicode(value, f"column {key!r}") if isinstance(value, str) else str(value)


def without_nulls(value: Any) -> Any:
    """Drop null members at every depth: Arrow gives each struct the fields of all the others, as nulls."""
    if isinstance(value, dict):
        return {key: without_nulls(member) for key, member in value.items() if member is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def excerpt(value: Any) -> str:
    """Return the first characters of a row, for a report; its keys where it cannot be written as JSON."""
    try:
        return json.dumps(value, ensure_ascii=False, default=repr)[:EXCERPT_CHARS]
    except (TypeError, ValueError, RecursionError):
        return f"its keys are {', '.join(map(repr, value))}"[:EXCERPT_CHARS] if isinstance(value, Mapping) else "[..."


def printable(text: str) -> str:
    """Replace half a surrogate pair, which a JSON string can hold, but no file or terminal."""
    return text.encode("utf-8", "replace").decode("utf-8")


# Parse function schemas and tool calls of a row


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
