"""Calls of functions: read out of what a model writes, or asked of it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from llmtune.inference.constraints import ForcedCall
from llmtune.inference.rows import held_back
from llmtune.serving.errors import ApiError
from llmtune.serving.protocol import ChatRequest, ToolChoice
from llmtune.serving.tool_format import ToolFormat, tool_format_of
from llmtune.templates.chat import ChatTemplate
from llmtune.types import ToolCall

__all__ = ["AnswerText", "calls_json", "forced_call", "format_of_request", "shown_tools"]


def shown_tools(request: ChatRequest) -> list[dict[str, Any]]:
    """The schemas that the prompt shows the model."""
    if request.tool_choice == "none":
        return []
    return [tool.model_dump(exclude_none=True) for tool in request.tools or ()]


def format_of_request(request: ChatRequest, template: ChatTemplate) -> ToolFormat | None:
    return tool_format_of(template) if shown_tools(request) else None


def forced_call(request: ChatRequest, fmt: ToolFormat | None) -> ForcedCall | None:
    """What `tool_choice` `required`, or a function by name, hold the answer to: one call with a JSON object."""
    choice = request.tool_choice
    if choice is None or choice in ("none", "auto"):
        return None
    names = [tool.function.name for tool in request.tools or ()]
    if isinstance(choice, ToolChoice):
        if choice.function.name not in names:
            raise ApiError(400, f"tool_choice names {choice.function.name!r}, which is none of tools.", param="tools")
        names = [choice.function.name]
    if not names:
        raise ApiError(400, "tool_choice asks for a call, and there are no tools.", param="tools")
    if fmt is None:
        raise ApiError(
            400, "This model's template has no format of calls that could be asked for.", param="tool_choice"
        )
    return ForcedCall(tuple(fmt.head(name) for name in names))


class AnswerText:
    """The text of one answer as it comes: what is content is passed on, what may be a call waits for the end."""

    def __init__(self, fmt: ToolFormat | None, forced: ForcedCall | None = None, *, parallel: bool = True) -> None:
        self.fmt = fmt
        self.forced = forced
        self.parallel = parallel
        self.calls: tuple[ToolCall, ...] = ()
        self._text = ""
        self._told = 0

    def add(self, piece: str) -> str:
        """The content that is certain by now."""
        self._text += piece
        if self.forced is not None:
            return ""
        if self.fmt is None:
            end = len(self._text)
        else:
            found = [place for word in self.fmt.opens if (place := self._text.find(word, self._told)) >= 0]
            end = min(found, default=len(self._text) - held_back(self._text, self.fmt.opens))
        told, self._told = self._text[self._told : end], max(self._told, end)
        return told

    def finish(self) -> str:
        """The rest of the content. Fills `calls`."""
        if self.forced is not None:
            self.calls = self._forced_calls(self.forced)
            return "" if self.calls else self._text
        if self.fmt is None:
            return ""
        parsed = self.fmt.parse(self._text)
        self.calls = tuple(parsed.calls if self.parallel else parsed.calls[:1])
        if not self.calls:
            return self._text[self._told :]
        return parsed.content[self._told :] if parsed.content.startswith(self._text[: self._told]) else ""

    def _forced_calls(self, forced: ForcedCall) -> tuple[ToolCall, ...]:
        state = forced.after(self._text)
        if state is None or state.arguments is None:  # max_tokens ended it before the arguments
            return ()
        assert self.fmt is not None
        name = self.fmt.name_of(state.written)
        return (ToolCall(name, self._text[len(state.written) :].strip()),)


def _call_json(call: ToolCall, index: int | None = None) -> dict[str, Any]:
    """As the API has a call; `index` for streams."""
    arguments = call.arguments
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    found: dict[str, Any] = {} if index is None else {"index": index}
    function = {"name": call.name, "arguments": text}
    return found | {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def calls_json(calls: Sequence[ToolCall], *, indexed: bool = False) -> list[dict[str, Any]]:
    return [_call_json(call, number if indexed else None) for number, call in enumerate(calls)]
