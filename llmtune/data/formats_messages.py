"""Parse a list of messages: roles, contents, thoughts, tool calls, and which of them contribute to the loss."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from llmtune.data.contents import PARTS, Content, Found, image_path, is_parts, read_content, read_thought
from llmtune.data.image_marks import with_own_marks
from llmtune.data.values import check_unicode, is_null, kind_of, parse_calls, parse_literal
from llmtune.errors import RowError
from llmtune.types import Message, Role

CALL = "call"
ROLES: dict[str, str] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(("tool_call", "function_call"), CALL),
}
"""Names of roles. CALL is an assistant turn whose content is the JSON of the calls."""

ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value")
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
CALL_KEYS = ("tool_calls", "function_call")
IMAGE_KEYS = ("images", "image")
SWITCH_KEYS = ("loss", "train", "trainable")
WEIGHT_KEYS = ("weight", "loss_scale", "loss_weight")
MESSAGE_KEYS = frozenset(
    {*ROLE_KEYS, *CONTENT_KEYS, *THOUGHT_KEYS, *CALL_KEYS, *IMAGE_KEYS, *SWITCH_KEYS, *WEIGHT_KEYS}
    | {"name", "tool_call_id", "refusal"}
)


def parse_messages(value: Any, key: str, found: Found) -> list[Message]:
    """Parse a list of {role, content} or {from, value}; the calls of one assistant turn are joined.

    Every assistant message contributes to the loss, except where a key of SWITCH_KEYS is false or one of
    WEIGHT_KEYS is 0.

    Args:
        key: The column, for errors and reports.
        found: Collects images, tools and unused keys of the messages.
    """
    what = f"column {key!r}"
    if isinstance(value, str):
        value = parse_literal(value, what=what)
    value = transposed(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RowError(f"{what} holds {kind_of(value)}, not a list of messages")
    if not value:
        raise RowError(f"{what} is an empty list")
    joined: list[Message] = []
    for number, item in enumerate(value, start=1):
        message = parse_message(item, f"message {number}", f"{key}[]", found)
        if joined and message.tool_calls and not message.content and joined[-1].role == "assistant":
            joined[-1] = _join(joined[-1], message, number)
        else:
            joined.append(message)
    return joined


def transposed(value: Any) -> Any:
    """Return a struct of lists, `{"role": [...], "content": [...]}`, as a list of messages; anything else unchanged."""
    if not isinstance(value, Mapping) or not set(ROLE_KEYS) & set(value):
        return value
    value = {key: column for key, column in value.items() if column is not None}
    columns = {key: column for key, column in value.items() if isinstance(column, (list, tuple))}
    if not columns or len(columns) != len(value) or len({len(column) for column in columns.values()}) != 1:
        return value
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _join(first: Message, second: Message, number: int) -> Message:
    """Join calls to the text, or to the calls, of the same turn."""
    if (first.loss, first.weight) != (second.loss, second.weight):
        both = f"messages {number - 1} and {number} are one assistant turn"
        reason = "have different weights in the loss" if first.loss and second.loss else "only one of them is trainable"
        raise RowError(f"{both}, but {reason}")
    if second.reasoning and (first.content or first.tool_calls):
        raise RowError(f"message {number} has a thought after the text or the calls of its turn")
    thoughts = [thought for thought in (first.reasoning, second.reasoning) if thought is not None]
    reasoning = "\n\n".join(filter(None, thoughts)) if thoughts else None
    return dataclasses.replace(first, tool_calls=first.tool_calls + second.tool_calls, reasoning=reasoning)


def parse_message(item: Any, where: str, place: str, found: Found) -> Message:
    """Parse one message.

    Args:
        where: Its place in the row, for errors. place: The list that holds it, for reports: `messages[]`.
    """
    if not isinstance(item, Mapping):
        raise RowError(f"{where} is {kind_of(item)}, not an object with role and content")
    fields = {_known(key, item): value for key, value in item.items() if not is_null(value)}
    role_key = next((key for key in ROLE_KEYS if key in fields), None)
    content_key = next((key for key in (*CONTENT_KEYS, "refusal") if key in fields), None)
    named = None if role_key is None else fields[role_key]
    role = _role(named, where, fields)
    where = f"{where} ({named})"
    others = {*ROLE_KEYS, *CONTENT_KEYS, "refusal"} - {role_key, content_key}
    found.leave(place, fields, MESSAGE_KEYS - others)
    content = None if content_key is None else fields[content_key]
    if role == CALL:
        return _call_message(content, fields, where, place, found)
    seen = len(found.images)
    read = Content() if content is None else read_content(content, role, where, place, found)
    calls = read.calls + _calls(fields, role, where)
    reasoning = _thought(fields, read.reasoning, role, where, place, found)
    if content is None and not calls and reasoning is None:
        hint = "" if {"content", "value"} & set(item) else f"; its keys are {_shown(fields)}, expected role and content"
        raise RowError(f"{where} has no content{hint}")
    loss, weight = _share(fields, where) if role == "assistant" else (False, 1.0)
    return Message(
        cast("Role", role),
        _with_images(read.text, fields, role, where, found, found.images[seen:]),
        loss,
        calls,
        reasoning=reasoning,
        weight=weight,
        name=_label(fields, "name", where),
        tool_call_id=_label(fields, "tool_call_id", where),
    )


def _known(key: Any, item: Mapping[Any, Any]) -> str:
    """Return the known spelling of a key: `Role` is `role`, unless the message has that as well."""
    lower = str(key).strip().lower()
    return lower if key not in MESSAGE_KEYS and lower in MESSAGE_KEYS and lower not in item else str(key)


def _call_message(content: Any, fields: Mapping[str, Any], where: str, place: str, found: Found) -> Message:
    if content is None:
        raise RowError(f"{where} has no content")
    if is_parts(content, PARTS):
        read = read_content(content, "assistant", where, place, found)
        calls = read.calls or parse_calls(read.text, where)
    else:
        calls = parse_calls(content, where)
    if not calls:
        raise RowError(f"{where} holds no call")
    reasoning = _thought(fields, None, "assistant", where, place, found)
    loss, weight = _share(fields, where)
    return Message("assistant", "", loss, calls, reasoning=reasoning, weight=weight)


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


def _calls(fields: Mapping[str, Any], role: str, where: str) -> Any:
    calls = next((fields[key] for key in CALL_KEYS if fields.get(key)), None)
    if calls and role != "assistant":
        raise RowError(f"{where} has tool_calls; only an assistant message may")
    return parse_calls(calls, where) if calls else ()


def _thought(
    fields: Mapping[str, Any], inside: str | None, role: str, where: str, place: str, found: Found
) -> str | None:
    """Return the thought of a message, under any of its keys. In a message of another role it is reported as unused."""
    given = {key: fields[key] for key in THOUGHT_KEYS if key in fields}
    if role != "assistant":
        found.leave(place, {key: thought for key, thought in given.items() if thought}, ())
        return None
    thoughts = [thought for key in given if (thought := read_thought(given[key], where)) or len(given) == 1]
    thoughts += [inside] if inside is not None else []
    if len(set(thoughts)) > 1:
        raise RowError(f"{where} has several thoughts that differ; keep one of {', '.join(given)}")
    return thoughts[0] if thoughts else "" if given else None


def _share(fields: Mapping[str, Any], where: str) -> tuple[bool, float]:
    """Return whether a turn contributes to the loss, and the weight of its tokens."""
    for key in SWITCH_KEYS:
        value = fields.get(key, 1)
        if not isinstance(value, (int, float)) or value not in (0, 1):
            raise RowError(f"{where} has {key} {value!r}; expected 0, 1, true or false")
    weights = {key: fields[key] for key in WEIGHT_KEYS if key in fields}
    for key, value in weights.items():
        if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise RowError(f"{where} has {key} {value!r}; expected a number of at least 0")
    others = {float(value) for value in weights.values()} - {1.0}
    if len(others) > 1:
        raise RowError(f"{where} has different values for {' and '.join(weights)}; keep one of them")
    weight = next(iter(others), 1.0)
    loss = weight > 0 and all(fields.get(key, 1) for key in SWITCH_KEYS)
    return loss, weight if loss else 1.0


def _with_images(
    text: str, fields: Mapping[str, Any], role: str, where: str, found: Found, inside: Sequence[str]
) -> str:
    """Return the content with a mark for each image that the message lists; these join the row's images."""
    given = next((fields[key] for key in IMAGE_KEYS if fields.get(key)), None)
    if given is None:
        return text
    if isinstance(given, str) and given.lstrip().startswith("["):
        given = parse_literal(given, what=f"the images of {where}")
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    paths = [image_path(path) for path in listed if path is not None]
    if paths and role != "user":
        raise RowError(f"{where} has images; only a user message may hold an image")
    if inside and paths:
        if paths != inside:
            raise RowError(f"{where} names images both in its parts and beside them; keep one of them")
        return text
    text, kept = with_own_marks(text, paths)
    found.images += kept
    return text


def _label(fields: Mapping[str, Any], key: str, where: str) -> str | None:
    value = fields.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowError(f"{where} has {kind_of(value)} as {key}, not text")
    return check_unicode(str(value), where)


def _shown(keys: Mapping[str, Any]) -> str:
    return ", ".join(repr(key) for key in keys) or "none"
