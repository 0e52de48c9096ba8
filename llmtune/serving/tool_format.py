"""How calls are read from a model's text. Hermes alone, until the templates' own registry has more."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from llmtune.templates.tools import format_tool_calls
from llmtune.types import ToolCall

__all__ = ["ParsedAnswer", "ToolFormat", "tool_format_of"]

CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)
HERE = "@@arguments@@"


@dataclass(frozen=True)
class ParsedAnswer:
    content: str
    calls: tuple[ToolCall, ...]


class ToolFormat:
    opens = ("<tool_call>",)
    stop_words: tuple[str, ...] = ()

    def parse(self, text: str) -> ParsedAnswer:
        calls = []
        for match in CALL.finditer(text):
            try:
                found = json.loads(match[1])
                calls.append(ToolCall(found["name"], found.get("arguments", {})))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue
        return ParsedAnswer(CALL.sub("", text).strip() if calls else text, tuple(calls))

    def head(self, name: str) -> str:
        """What a call begins with, up to its arguments."""
        return format_tool_calls("hermes", "", [ToolCall(name, HERE)]).partition(HERE)[0]

    def name_of(self, head: str) -> str:
        return head.split('"')[3]


def tool_format_of(template: Any) -> ToolFormat | None:
    own = getattr(template.tokenizer, "chat_template", None) if template.info.from_tokenizer else None
    if template.info.tool_format == "hermes" or (isinstance(own, str) and "<tool_call>" in own):
        return ToolFormat()
    return None
