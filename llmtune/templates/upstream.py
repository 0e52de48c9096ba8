"""Convert a conversation into the messages of `apply_chat_template`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from llmtune.data.image_marks import MARK, split_marks
from llmtune.errors import TemplateError
from llmtune.templates.tools.jsons import call_id
from llmtune.types import Conversation, Json, Message

__all__ = ["THOUGHT_KEYS", "checked_kwargs", "thought_keys", "upstream_messages"]

THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys that chat templates read the thought of a message from."""


@lru_cache
def thought_keys(source: str) -> tuple[str, ...]:
    """Return the THOUGHT_KEYS that a chat template's source reads; the first if it reads none."""
    read = [key for key in THOUGHT_KEYS if re.search(r"""(?:\.|['"])""" + key + r"\b", source)]
    return tuple(read or THOUGHT_KEYS[:1])


def checked_kwargs(kwargs: Mapping[str, Json]) -> dict[str, Json]:
    """Return variables for a chat template.

    Raises:
        TemplateError: A parameter of `apply_chat_template` itself, with which a row of data or a client of the server
            could replace the template.
    """
    taken = sorted(set(kwargs) & _own_arguments())
    if taken:
        raise TemplateError(
            f"chat_template_kwargs contains {', '.join(taken)}, which is not a variable of a chat template"
        )
    return dict(kwargs)


@lru_cache
def _own_arguments() -> frozenset[str]:
    from transformers import PreTrainedTokenizerBase

    names = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    return (names | {"messages"}) - {"documents", "kwargs"}


def upstream_messages(
    conversation: Conversation,
    *,
    system: str | None = None,
    image: str = "",
    thoughts_as: Sequence[str] = THOUGHT_KEYS[:1],
    own_ids: bool = True,
) -> list[dict[str, Any]]:
    """Return the messages of a conversation.

    Args:
        image: The template's text of an image; questions with images are then lists of parts.
        thoughts_as: Keys of a thought.
        own_ids: Keep the ids of calls in the data. Else calls are numbered with the nine digits that Mistral's
            templates require; a result keeps the call that it refers to.
    """
    messages: list[dict[str, Any]] = []
    ids = _Ids(own_ids)
    if conversation.system is None and system is not None:
        messages.append({"role": "system", "content": system})
    for message in conversation.messages:
        item: dict[str, Any] = {"role": message.role, "content": message.content}
        if image and message.role == "user" and MARK.search(message.content):
            texts = split_marks(message.content, joins_line=image.endswith("\n"))
            item["content"] = [{"type": "image"} if text is None else {"type": "text", "text": text} for text in texts]
        if message.name is not None:
            item["name"] = message.name
        if message.reasoning is not None:
            item |= dict.fromkeys(thoughts_as, message.reasoning)
        if message.role == "tool":
            item["tool_call_id"] = ids.of_result(message)
        if message.tool_calls:
            item["tool_calls"] = [
                {
                    "type": "function",
                    "id": ids.of_call(call.id),
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in message.tool_calls
            ]
        messages.append(item)
    return messages


class _Ids:
    """Return the ids of calls, each with the id that its result refers to."""

    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self._given: dict[str, str] = {}
        self._num_calls = self._num_results = 0

    def of_call(self, own: str | None) -> str:
        counted = call_id(self._num_calls)
        self._num_calls += 1
        if own is not None:
            self._given[own] = own if self.keep else counted
            return self._given[own]
        return counted

    def of_result(self, message: Message) -> str:
        counted = call_id(self._num_results)
        self._num_results += 1
        own = message.tool_call_id
        if own is None:
            return counted
        return self._given.get(own, own if self.keep else counted)
