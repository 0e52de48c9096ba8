"""Find the tool format of a template: its own, or that of the tokenizer's own chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmtune.templates.tools.info import TOOL_FORMAT_MAPPING, ToolFormat

if TYPE_CHECKING:
    from llmtune.templates.chat import ChatTemplate

__all__ = ["tool_format_of"]

MARKS = {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS]", "llama3.1": '"parameters": '}
"""Text in a tokenizer's chat template that identifies its tool format."""


def tool_format_of(template: ChatTemplate) -> ToolFormat | None:
    """Return the tool format of a template; None where it has none."""
    if not template.info.from_tokenizer:
        return template.info.tools
    text = str(getattr(template.tokenizer, "chat_template", "") or "")
    key = next((key for key, mark in MARKS.items() if mark in text and "tool_calls" in text), None)
    return None if key is None else TOOL_FORMAT_MAPPING[key]
