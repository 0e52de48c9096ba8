"""The content of a message: text, or parts (text, thoughts, calls, images) in the formats of several APIs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmtune.data.values import check_unicode, json_text, kind_of, parse_calls
from llmtune.errors import RowError
from llmtune.types import Message, ToolCall

TEXTS = ("text", "input_text", "output_text", "refusal")
THOUGHTS = ("reasoning", "thinking", "reasoning_content", "thought")
CALLS = ("tool_call", "tool_calls", "function_call")
IMAGES = ("image", "image_url", "input_image")
PARTS = (*TEXTS, *THOUGHTS, *CALLS, *IMAGES, "tools")
VALUES = ("value", "text", "content")
"""Keys that may hold a part's value, beside the key named after its type."""

IMAGE_VALUES = ("image", "image_url", "path", "url", "value")
LABELS = frozenset({"type", "id", "index"})


@dataclass(slots=True)
class Found:
    """Facts found in a row beside its messages.

    Attributes:
        images: Paths inside messages, in the order of the marks that they fill.
        tools: Schemas inside messages.
        unused: Keys inside messages that were not read, as `messages[].key`.
        notes: Changes to the turns, in fixed words: the report counts the rows per change.
    """

    images: list[str] = field(default_factory=list)
    tools: list[Any] = field(default_factory=list)
    unused: dict[str, None] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def leave(self, place: str, fields: Mapping[str, Any], known: Collection[Any]) -> None:
        """Note unknown keys; a key whose cell is null counts as absent."""
        self.unused.update((f"{place}.{key}", None) for key in fields if key not in known and fields[key] is not None)


@dataclass(slots=True)
class Content:
    """Content of a message. `reasoning`: None where there is none. `calls`: tool calls among the parts."""

    text: str = ""
    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()


def is_parts(content: Any, types: Collection[str] | None = None) -> bool:
    """Return whether a list, or a single object, consists of parts that name their type; texts may stand between them.

    Args:
        types: The types that count; None for any.
    """
    items = [content] if isinstance(content, Mapping) else content
    if not isinstance(items, (list, tuple)) or not items:
        return False
    typed = [item for item in items if isinstance(item, Mapping) and isinstance(item.get("type"), str)]
    return (
        bool(typed)
        and all(isinstance(item, (str, Mapping)) for item in items)
        and (types is None or all(item["type"] in types for item in typed))
    )


def read_content(content: Any, role: str, where: str, place: str, found: Found) -> Content:
    """Read the content of a message of any role.

    A value that is neither text nor parts becomes its JSON text: what a tool returned, or a structured answer.

    Raises:
        RowError: A part of an unknown type, parts in an order that no template writes, or a boolean as the content
            of a user or assistant message.
    """
    if isinstance(content, str):
        return Content(check_unicode(content, where))
    if isinstance(content, bool) and role != "tool":
        raise RowError(f"{where} has {kind_of(content)} as content, not text")
    if isinstance(content, (int, float)) and not isinstance(content, bool):
        return Content(str(content))
    if role == "tool":
        if is_parts(content) and any(map(_shows_image, _items(content))):
            raise RowError(f"{where} has an image in a tool result; only a user message may hold an image")
        is_text = is_parts(content) and all(_plain_text(part) is not None for part in _items(content))
        return Content("".join(map(str, map(_plain_text, _items(content)))) if is_text else json_text(content, where))
    texts = isinstance(content, (list, tuple)) and all(isinstance(item, str) for item in content)
    if not texts and not is_parts(content):
        return Content(json_text(content, where))
    made = Content()
    for part in _items(content):
        _read_part(part, role, where, place, made, found)
    return made


def _items(content: Any) -> Sequence[Any]:
    return [content] if isinstance(content, Mapping) else content


def _plain_text(part: Any) -> str | None:
    """Return the text of a part of a tool result. Anything else that a tool returns is data, even with a `type`."""
    if isinstance(part, str):
        return part
    text = part.get("text", part.get("value")) if part.get("type") in TEXTS else None
    return text if isinstance(text, str) else None


def _shows_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in IMAGES and any(part.get(key) for key in IMAGE_VALUES)


def _read_part(part: Any, role: str, where: str, place: str, made: Content, found: Found) -> None:
    if isinstance(part, str):
        part = {"type": "text", "text": part}
    kind = part.get("type")
    if kind not in PARTS:
        named = f"of type {kind!r}" if kind is not None else "without a type"
        raise RowError(f"{where} has a part {named}, which is not supported; supported: {', '.join(PARTS)}")
    names = IMAGE_VALUES if kind in IMAGES else (kind, *VALUES)
    key = next((key for key in names if part.get(key) is not None), None)
    value = None if key is None else part[key]
    if kind not in CALLS:
        found.leave(f"{place}.content[]", part, {*LABELS, key})
    if kind in IMAGES:
        if role != "user":
            raise RowError(f"{where} has a part of type {kind!r}; only a user message may hold an image")
        if value is not None:
            found.images.append(image_path(value))
        made.text += "<image>"
        return
    if kind == "tools":
        found.tools.append(value)
        return
    if kind in CALLS:
        _need_assistant(role, kind, where)
        made.calls += parse_calls(part if value is None else value, where)
    elif kind in THOUGHTS:
        _need_assistant(role, kind, where)
        if made.text or made.calls:
            raise RowError(f"{where} has a thought after its text; a thought comes first")
        made.reasoning = "\n\n".join([*([made.reasoning] if made.reasoning else []), read_thought(value, where)])
    elif not isinstance(value, str):
        raise RowError(f"{where} has a part of type {kind!r} that holds {kind_of(value)}, not text")
    elif made.calls and value.strip():
        raise RowError(f"{where} has text after its tool calls; the calls come last")
    else:
        made.text += "" if made.calls else check_unicode(value, where)


def _need_assistant(role: str, kind: str, where: str) -> None:
    if role != "assistant":
        raise RowError(f"{where} has a part of type {kind!r}; only an assistant message may")


def read_thought(value: Any, where: str) -> str:
    """Return a thought, given as text or parts of text.

    Raises:
        RowError: Anything else.
    """
    if isinstance(value, str):
        return check_unicode(value, where)
    texts = [_plain_text(part) for part in _items(value)] if is_parts(value) else [None]
    if any(text is None for text in texts):
        raise RowError(f"{where} has {kind_of(value)} as its thought, not text")
    return check_unicode("".join(map(str, texts)), where)


def image_path(value: Any) -> str:
    """Return the path or URL of an image, given as text or as an object that names it."""
    if isinstance(value, Mapping):
        named = next((value[key] for key in ("path", "url") if value.get(key) is not None), None)
        if named is None and value.get("bytes") is not None:
            raise RowError("an image is given as bytes; save it to a file and give the path")
        value = named
    if not isinstance(value, str):
        raise RowError(f"an image is {kind_of(value)}, not a path or a URL")
    return check_unicode(value, "an image path")


# Normalise and check the order of turns: [system] (user | tool ...) assistant


BLANK_LINE = "\n\n"
JOINED = "consecutive turns of one role were joined by a blank line"
SYSTEM_LATER = "a later system message was joined to the user message beside it"
OPENING = "an assistant message before the first user message was omitted"


def arrange(messages: Sequence[Message], found: Found) -> list[Message]:
    """Bring turns into the order that every template writes, where that keeps the meaning; `found` notes the changes.

    - Consecutive turns of one side become one, with a blank line between them, and so do leading system messages.
    - A later system message joins the question before or after it, in its place.
    - An assistant message before the first question is omitted, as it responds to nothing.

    Raises:
        RowError: Assistant messages of one turn that differ in what is trainable.
    """
    made: list[Message] = []
    for message in messages:
        before = made[-1] if made else None
        joined = None if before is None else _joined(before, message, len(made) == 1)
        if joined is None:
            made.append(message)
            continue
        made[-1], note = joined
        found.notes[note] = None
    first = int(bool(made) and made[0].role == "system")
    opening = tuple(message.role for message in made[first : first + 2]) == ("assistant", "user")
    if opening and not made[first].tool_calls:
        found.notes[OPENING] = None
        del made[first]
    return made


def _joined(before: Message, message: Message, is_first: bool) -> tuple[Message, str] | None:
    """Return two messages joined, and the note on it; None where they stay two."""
    roles = (before.role, message.role)
    if roles == ("system", "system"):
        return _with_text(before, before, message), JOINED
    if roles == ("assistant", "assistant"):
        return _answers(before, message), JOINED
    if roles == ("user", "user") and before.name == message.name:
        return _with_text(message, before, message), JOINED
    if roles == ("user", "system"):
        return _with_text(before, before, message), SYSTEM_LATER
    if roles == ("system", "user") and not is_first:
        return _with_text(message, before, message), SYSTEM_LATER
    return None


def _with_text(kept: Message, first: Message, second: Message) -> Message:
    return dataclasses.replace(kept, content=BLANK_LINE.join(filter(None, (first.content, second.content))))


def _answers(first: Message, second: Message) -> Message:
    if first.loss != second.loss:
        raise RowError("two assistant messages are one turn, but only one of them is trainable")
    if first.weight != second.weight:
        raise RowError("two assistant messages are one turn, but have different weights in the loss")
    if first.tool_calls and second.content:
        raise RowError("an assistant message follows tool calls; expected their results")
    if first.content and second.reasoning:
        raise RowError("an assistant message with a thought follows the text of the same turn")
    thoughts = [thought for thought in (first.reasoning, second.reasoning) if thought is not None]
    reasoning = BLANK_LINE.join(filter(None, thoughts)) if thoughts else None
    calls = first.tool_calls + second.tool_calls
    return dataclasses.replace(_with_text(first, first, second), tool_calls=calls, reasoning=reasoning)


def check_turns(messages: Sequence[Message], *, need_answer: bool) -> None:
    """Raise a RowError if the turns are not [system] (user | tool ...) assistant ..., beginning with a user.

    A single assistant message is text to train on. Without `need_answer` the last assistant turn may be missing.
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
            raise RowError("a system message comes after the first message, with no user message beside it")
        expected = ("assistant",) if before.role == "user" else ("assistant", "tool")
        if before.role == "assistant":
            expected = ("user", "tool")
        if after.role not in expected:
            raise RowError(
                f"{_article(after.role)} message follows {_article(before.role)} message; "
                f"expected {' or '.join(expected)}"
            )
    if need_answer and turns[-1].role != "assistant":
        raise RowError(
            f"the conversation ends with {_article(turns[-1].role)} message: there is no response to train on"
        )


def _article(role: str) -> str:
    return f"an {role}" if role == "assistant" else f"a {role}"
