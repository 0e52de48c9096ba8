"""Function calling written as a transcript: glaive-function-calling-v2."""

from __future__ import annotations

import json
import re
from typing import Any

from llmtune.data.preprocess.common import Row, text_of
from llmtune.errors import RowError

SPEAKER = re.compile(r"^[ \t]*(USER|ASSISTANT|FUNCTION RESPONSE):[ \t]*", re.MULTILINE)
ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
CALL = "<functioncall>"
END_OF_TURN = "<|endoftext|>"
QUOTED_ARGUMENTS = re.compile(r'^(\{.*"arguments":\s*)\'(.*)\'\s*\}$', re.DOTALL)
"""Arguments between single quotes are not JSON, and may hold single quotes themselves: the last one closes them."""


def glaive(row: Row) -> Row:
    """The turns of `chat`, with the calls and the functions that `system` offers as data.

    The sentence that announces the functions is left out: the template says that in its model's own words.
    """
    made: Row = {"messages": _turns(text_of(row, "chat"))}
    system = text_of(row, "system").strip().removeprefix("SYSTEM:").strip()
    start = system.find("{")
    if start >= 0:
        made["tools"] = _objects(system[start:])
    elif system:
        made["system"] = system
    return made


def _turns(chat: str) -> list[dict[str, Any]]:
    pieces = SPEAKER.split(chat)
    if pieces[0].strip():
        raise RowError(f"column 'chat' begins with {pieces[0].strip()[:20]!r}, not with a speaker")
    return [_turn(ROLES[name], text) for name, text in zip(pieces[1::2], pieces[2::2], strict=True)]


def _turn(role: str, text: str) -> dict[str, Any]:
    text = text.replace(END_OF_TURN, "").strip()
    if role != "assistant" or CALL not in text:
        return {"role": role, "content": text}
    said, _, call = text.partition(CALL)
    return {"role": role, "content": said.strip(), "tool_calls": [_call(call.strip())]}


def _call(text: str) -> dict[str, Any]:
    """A call whose arguments are an object, or an object that is written out between single quotes."""
    quoted = QUOTED_ARGUMENTS.match(text)
    try:
        call = json.loads(f"{quoted[1]}{{}}}}" if quoted else text, strict=False)
        if quoted:
            call["arguments"] = json.loads(quoted[2], strict=False)
    except ValueError:
        raise RowError(f"a function call is not JSON: {text[:60]!r}") from None
    return {"name": call["name"], "arguments": call.get("arguments") or {}}


def _objects(text: str) -> list[Any]:
    """JSON objects that stand one after the other."""
    decoder, found, at = json.JSONDecoder(strict=False), [], 0
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            raise RowError(f"column 'system' holds a function that is not JSON: {text[at : at + 40]!r}") from None
        found.append(value)
        while at < len(text) and text[at].isspace():
            at += 1
    return found
