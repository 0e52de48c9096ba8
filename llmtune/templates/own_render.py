"""Render rows with a tokenizer's own chat template, in the forms that such templates expect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmtune.errors import TemplateError
from llmtune.templates.tools.jsons import to_json
from llmtune.templates.upstream import checked_kwargs, thought_keys, upstream_messages
from llmtune.types import Conversation, Json

__all__ = ["SENTINEL", "Renderer"]

SENTINEL = "An answer of 7 words, no more."


class Renderer:
    """Renderer of one tokenizer's chat template.

    Most templates write the arguments of a call as JSON and expect them parsed, as servers pass them; DeepSeek-V3's
    concatenates texts and expects the JSON. Mistral's require ids of nine characters.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.source = _source(tokenizer)
        self._thoughts_as = thought_keys(self.source)

    def render(self, conversation: Conversation, *, system: str | None = None, asks: bool = False) -> str:
        """Return the text of a conversation; with `asks`, with the generation prompt.

        Raises:
            TemplateError: The template refuses the row, in each of the forms.
        """
        has_calls = any(message.tool_calls for message in conversation.messages)
        has_ids = any(
            message.tool_call_id or any(c.id for c in message.tool_calls) for message in conversation.messages
        )
        forms = [(True, True)]
        if has_calls:
            forms.append((False, True))
        if has_ids:
            forms += [(parsed, False) for parsed, _ in tuple(forms)]
        first: TemplateError | None = None
        for parsed, own_ids in forms:
            try:
                text, shown = self._apply(conversation, system, asks, parsed=parsed, own_ids=own_ids)
            except TemplateError as err:
                first = first or err
                continue
            if parsed and any(str(value) in text and to_json(value) not in text for value in shown):
                continue  # written into the text as Python repr: this template expects JSON
            return text
        raise first or TemplateError(
            "the tokenizer's chat template writes the arguments of calls as Python, not as JSON"
        )

    def _apply(
        self, conversation: Conversation, system: str | None, asks: bool, *, parsed: bool, own_ids: bool
    ) -> tuple[str, list[Mapping[str, Json]]]:
        """Return the text, and the arguments that were given as objects."""
        messages = upstream_messages(conversation, system=system, thoughts_as=self._thoughts_as, own_ids=own_ids)
        objects: list[Mapping[str, Json]] = []
        for message in messages:
            for call in message.get("tool_calls", ()):
                function = call["function"]
                function["arguments"] = _parsed(function["arguments"]) if parsed else _as_text(function["arguments"])
                if parsed and isinstance(function["arguments"], Mapping) and function["arguments"]:
                    objects.append(function["arguments"])
        kwargs = checked_kwargs(conversation.template_kwargs)
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tools=list(conversation.tools) or None, tokenize=False, add_generation_prompt=asks, **kwargs
            )
        except MemoryError:
            raise
        except Exception as err:  # a template may raise anything for a conversation that it refuses
            raise TemplateError(f"the tokenizer's chat template refuses the row: {err}") from err
        return str(text), objects


def _source(tokenizer: Any) -> str:
    """Return the Jinja source of a tokenizer: all of its templates where it has several."""
    found = tokenizer.chat_template
    return "\n".join(map(str, found.values())) if isinstance(found, Mapping) else str(found)


def _parsed(arguments: Json) -> Json:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def _as_text(arguments: Json) -> str:
    return arguments if isinstance(arguments, str) else to_json(arguments)
