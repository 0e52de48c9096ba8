"""Tool calls: parsing them from a response, or forcing them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llmtune.errors import TemplateError
from llmtune.inference.constraints import ForcedCall
from llmtune.inference.texts import held_back
from llmtune.serving.protocol import ApiError, ChatRequest, ToolChoice
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.tools import At, ToolFormat, tool_format_of
from llmtune.types import ToolCall

STAND_IN = {"@": 0}
"""Placeholder arguments, to find the text around the arguments of a call."""


@dataclass(slots=True)
class AskedCall:
    """Call required by `tool_choice`: the text before its arguments -> the function; the text after them."""

    heads: dict[str, str] = field(default_factory=dict)
    tail: str = ""

    def constraint(self) -> ForcedCall:
        return ForcedCall(tuple(self.heads), self.tail)


def shown_tools(request: ChatRequest) -> list[dict[str, Any]]:
    """Return the schemas to write into the prompt."""
    if request.tool_choice == "none":
        return []
    return [tool.model_dump(exclude_none=True) for tool in request.tools or ()]


def format_of_request(request: ChatRequest, template: ChatTemplate) -> ToolFormat | None:
    return tool_format_of(template) if shown_tools(request) else None


def call_asked_by(request: ChatRequest, fmt: ToolFormat | None) -> AskedCall | None:
    """Return the constraint of `tool_choice` `required`, or of a function by name."""
    choice = request.tool_choice
    if choice is None or choice in ("none", "auto"):
        return None
    names = [tool.function.name for tool in request.tools or ()]
    if isinstance(choice, ToolChoice):
        if choice.function.name not in names:
            raise ApiError(400, f"tool_choice names {choice.function.name!r}, which is not in tools.", param="tools")
        names = [choice.function.name]
    if not names:
        raise ApiError(400, "tool_choice requires a call, but there are no tools.", param="tools")
    asked = None if fmt is None else asked_call(fmt, names, after_results=request.messages[-1].role == "tool")
    if asked is None or not asked.heads:
        raise ApiError(400, "This model's template has no tool format that can be forced.", param="tool_choice")
    return asked


def asked_call(fmt: ToolFormat, names: Sequence[str], *, after_results: bool = False) -> AskedCall:
    """Return the constraint to a call of one of the functions, in the tool format."""
    asked = AskedCall()
    for name in names:
        try:
            pieces = fmt.write_calls("", [ToolCall(name, STAND_IN)], At(after_results=after_results))
        except TemplateError:
            continue
        # Control tokens, in pieces of their own, are not part of a response's text.
        text = "".join(piece.content for piece in pieces if isinstance(piece.content, str) and piece.from_data)
        head, found, tail = text.partition(json.dumps(STAND_IN))
        if found:
            asked.heads[head], asked.tail = name, tail
    return asked


class AnswerText:
    """Streaming parser of one response: content is passed on, text that may be a call is held back to the end.

    Args:
        asked: The constraint, where a call was required.
        parallel: Whether several calls are allowed; else the first is taken.
    """

    def __init__(self, fmt: ToolFormat | None, asked: AskedCall | None = None, *, parallel: bool = True) -> None:
        self.fmt = fmt
        self.asked = asked
        self.parallel = parallel
        self.calls: tuple[ToolCall, ...] = ()
        self._text = ""
        self._sent = 0

    def add(self, piece: str) -> str:
        """Return the content that is certain by now."""
        self._text += piece
        if self.asked is not None:
            return ""
        if self.fmt is None:
            end = len(self._text)
        else:
            found = [place for word in self.fmt.opens if (place := self._text.find(word, self._sent)) >= 0]
            end = min(found, default=len(self._text) - held_back(self._text, self.fmt.opens))
        text, self._sent = self._text[self._sent : end], max(self._sent, end)
        return text

    def finish(self) -> str:
        """Return the rest of the content. Fills `calls`."""
        if self.asked is not None:
            return self._finish_asked(self.asked)
        if self.fmt is None:
            return ""
        parsed = self.fmt.parse(self._text)
        self.calls = tuple(parsed.calls if self.parallel else parsed.calls[:1])
        if parsed.content.startswith(self._text[: self._sent]):
            return parsed.content[self._sent :]
        return "" if self.calls else self._text[self._sent :]

    def _finish_asked(self, asked: AskedCall) -> str:
        state = asked.constraint().after(self._text)
        if state is None or not state.is_complete:  # ended early by max_tokens or a stop word
            return self._text
        _, end = json.JSONDecoder().raw_decode(self._text, len(state.written))
        self.calls = (ToolCall(asked.heads[state.written], self._text[len(state.written) : end]),)
        return ""


def calls_json(calls: Sequence[ToolCall], *, indexed: bool = False) -> list[dict[str, Any]]:
    """Return a call in the API's format; with `index` for streams."""
    return [_call_json(call, number if indexed else None) for number, call in enumerate(calls)]


def _call_json(call: ToolCall, index: int | None) -> dict[str, Any]:
    arguments = call.arguments
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    found: dict[str, Any] = {} if index is None else {"index": index}
    return found | {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": call.name, "arguments": text},
    }
