"""The parts of a row that hold whole messages: roles, contents in parts, tool calls, tool schemas; and their order."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from llmtune.data.readers import without_nulls
from llmtune.errors import RowError
from llmtune.types import Json, Message, Role, ToolCall

__all__ = [
    "check_turns",
    "image_path",
    "kind_of",
    "parse_literal",
    "parse_messages",
    "parse_tools",
    "text_or_none",
]

CALL = "call"
ROLES: dict[str, str] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(("tool_call", "function_call"), CALL),
}
"""What a message may call its role. CALL is an assistant turn whose content is the JSON of the calls."""


def kind_of(value: Any) -> str:
    """What a wrong value is, in a user's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = ((str, "text"), ((int, float), "a number"), (Mapping, "an object"), ((list, tuple), "a list"))
    return next((name for types, name in names if isinstance(value, types)), type(value).__name__)


def parse_literal(text: str, *, what: str) -> Any:
    """Parse a cell that holds JSON, or Python's own spelling of it, as text.

    Raises:
        RowError: It is neither.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise RowError(f"{what} is text that is not JSON: {text[:40]!r}") from None


# Messages


def parse_messages(value: Any, *, what: str, images: list[str]) -> list[Message]:
    """Parse a list of {role, content} or {from, value}; adjacent parts of one assistant turn are joined.

    Every assistant message is learned, except where it says `"weight": 0` or `"loss": false`.

    Args:
        what: The column, for the errors.
        images: Receives the paths that stand inside the contents.
    """
    if isinstance(value, str):
        value = parse_literal(value, what=what)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RowError(f"{what} holds {kind_of(value)}, not a list of messages")
    if not value:
        raise RowError(f"{what} is an empty list")
    joined: list[Message] = []
    for number, item in enumerate(value, start=1):
        message = _parse_message(item, f"message {number}", images)
        if joined and message.tool_calls and not message.content and joined[-1].role == "assistant":
            joined[-1] = _join(joined[-1], message, number)
        else:
            joined.append(message)
    return joined


def _join(first: Message, second: Message, number: int) -> Message:
    if first.loss != second.loss:
        raise RowError(f"messages {number - 1} and {number} are one assistant turn, but only one of them is learned")
    return dataclasses.replace(first, tool_calls=first.tool_calls + second.tool_calls)


def _parse_message(item: Any, where: str, images: list[str]) -> Message:
    if not isinstance(item, Mapping):
        raise RowError(f"{where} is {kind_of(item)}, not an object with role and content")
    fields = {key: value for key, value in item.items() if value is not None}
    named = fields.get("role", fields.get("from"))
    role = _role(named, where, fields)
    content = fields.get("content", fields.get("value"))
    learned = role in ("assistant", CALL) and _is_learned(fields, where)
    if role == CALL:
        if content is None:
            raise RowError(f"{where} ({named}) has no content")
        called = _parse_calls(content, where)
        if not called:
            raise RowError(f"{where} ({named}) holds no call")
        return Message("assistant", "", learned, called)
    calls = fields.get("tool_calls") or fields.get("function_call")
    if calls and role != "assistant":
        raise RowError(f"{where} ({named}) has tool_calls; only an assistant message may")
    tool_calls = _parse_calls(calls, where) if calls else ()
    if content is None and not tool_calls:
        hint = "" if {"content", "value"} & set(item) else f"; its keys are {_shown(fields)}, expected role and content"
        raise RowError(f"{where} ({named}) has no content{hint}")
    text = "" if content is None else _content_text(content, f"{where} ({named})", images)
    return Message(cast("Role", role), text, learned, tool_calls)


def _role(named: Any, where: str, fields: Mapping[str, Any]) -> str:
    if named is None:
        shown = _shown(fields)
        raise RowError(f"{where} has no role; its keys are {shown}, expected role and content, or from and value")
    role = ROLES.get(named.strip().lower()) if isinstance(named, str) else None
    if role is None:
        near = difflib.get_close_matches(str(named).lower(), ROLES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; expected system, user, assistant or tool"
        raise RowError(f"{where} has the unknown role {named!r}{hint}")
    return role


def _is_learned(fields: Mapping[str, Any], where: str) -> bool:
    for key in ("weight", "loss"):
        value = fields.get(key, 1)
        if not isinstance(value, (int, float)) or value not in (0, 1):
            raise RowError(f"{where} has {key} {value!r}; a message is learned or not: 0, 1, true or false")
    return bool(fields.get("weight", 1)) and bool(fields.get("loss", 1))


def _content_text(content: Any, where: str, images: list[str]) -> str:
    if isinstance(content, str):
        return check_unicode(content, where)
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Sequence):
        raise RowError(f"{where} has {kind_of(content)} as content, not text")
    return "".join(_part_text(part, where, images) for part in content)


def _part_text(part: Any, where: str, images: list[str]) -> str:
    if isinstance(part, str):
        return check_unicode(part, where)
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise RowError(f"{where} has a list as content, with a part that is not {{type: text}} or {{type: image}}")
    if part["type"] == "text" and isinstance(part.get("text"), str):
        return check_unicode(part["text"], where)
    if part["type"] not in ("image", "image_url"):
        raise RowError(f"{where} has a part of type {part['type']!r}, which is not supported; only text and image are")
    source = next((part[key] for key in ("image", "image_url", "path", "url") if part.get(key) is not None), None)
    if source is not None:
        images.append(image_path(source))
    return "<image>"


def image_path(value: Any) -> str:
    """The path or address of an image, given as text or as an object that names it."""
    if isinstance(value, Mapping):
        named = next((value[key] for key in ("path", "url") if value.get(key) is not None), None)
        if named is None and value.get("bytes") is not None:
            raise RowError("an image is given by its bytes alone; save it to a file and give the path")
        value = named
    if not isinstance(value, str):
        raise RowError(f"an image is {kind_of(value)}, not a path or an address")
    return check_unicode(value, "an image path")


# Tools


def _parse_calls(value: Any, where: str) -> tuple[ToolCall, ...]:
    what = f"the tool calls of {where}"
    if isinstance(value, str):
        value = parse_literal(value, what=what)
    items = [value] if isinstance(value, Mapping) else value
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise RowError(f"{what}: {kind_of(value)} where a call or a list of calls belongs")
    return tuple(_parse_call(item, what) for item in items)


def _parse_call(item: Any, what: str) -> ToolCall:
    if isinstance(item, str):
        item = parse_literal(item, what=what)
    inner = item.get("function") if isinstance(item, Mapping) else None
    fields = inner if isinstance(inner, Mapping) else item
    if not isinstance(fields, Mapping) or not isinstance(fields.get("name"), str):
        raise RowError(f"{what}: a call has no name; expected {{name, arguments}}, alone or under 'function'")
    arguments: Json = next((fields[key] for key in ("arguments", "parameters") if fields.get(key) is not None), {})
    return ToolCall(check_unicode(fields["name"], what), _parse_arguments(arguments))


def _parse_arguments(value: Any) -> Json:
    """Only objects are parsed from text: a text that is a number or a quotation stays what it was."""
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return parsed if isinstance(parsed, dict) else value


def parse_tools(value: Any) -> tuple[Json, ...]:
    """Function schemas from JSON text, a list of objects, or a list of JSON texts.

    Null members are dropped from objects (Arrow puts them there), not from JSON text.
    """
    if isinstance(value, str):
        value = parse_literal(value, what="tools") if value.strip() else []
    else:
        value = without_nulls([value] if isinstance(value, Mapping) else value)
    items = [value] if isinstance(value, Mapping) else value
    if items is None:
        return ()
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise RowError(f"tools holds {kind_of(value)}, not a list of function schemas")
    tools = tuple(parse_literal(item, what="a tool") if isinstance(item, str) else item for item in items)
    for tool in tools:
        if not isinstance(tool, Mapping):
            raise RowError(f"a tool is {kind_of(tool)}, not a function schema")
    return tools


# Checks


def check_unicode(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError(f"{where} holds half of a surrogate pair, which is not valid Unicode") from None
    return text


def check_turns(messages: Sequence[Message], *, need_answer: bool) -> None:
    """Raise a RowError where the turns are not [system] (user | tool ...) assistant ..., beginning with a user.

    One assistant message alone is text to learn. Without `need_answer` the last assistant turn may be missing.
    """
    turns = list(messages[1:] if messages and messages[0].role == "system" else messages)
    if not turns:
        raise RowError("there is no user or assistant message")
    if len(turns) == 1 and turns[0].role == "assistant":
        return
    if turns[0].role != "user":
        raise RowError(f"the first turn is {_article(turns[0].role)} message, not a user message")
    for before, after in itertools.pairwise(turns):
        if after.role == "system":
            raise RowError("a system message stands after the first message; it must come first")
        expected = ("assistant",) if before.role == "user" else ("assistant", "tool")
        if before.role == "assistant":
            expected = ("user", "tool")
        if after.role not in expected:
            raise RowError(
                f"{_article(after.role)} message follows {_article(before.role)} message; "
                f"expected {' or '.join(expected)}"
            )
    if need_answer and turns[-1].role != "assistant":
        raise RowError(f"the conversation ends with {_article(turns[-1].role)} message: there is no answer to learn")


def _article(role: str) -> str:
    return f"an {role}" if role == "assistant" else f"a {role}"


def _shown(keys: Mapping[str, Any]) -> str:
    return ", ".join(repr(key) for key in keys) or "none"


def text_or_none(row: Mapping[str, Any], key: str) -> str | None:
    """A text cell; numbers become their text, an absent one is None.

    Raises:
        RowError: The cell holds anything else.
    """
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise RowError(f"column {key!r} holds {kind_of(value)}, not text")
    return check_unicode(value, f"column {key!r}") if isinstance(value, str) else str(value)
