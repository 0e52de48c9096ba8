"""Entries of the tool format registry. A template names its format; `template.py` uses it for rows with tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from llmtune.errors import UsageError
from llmtune.registry import Entry, Registry
from llmtune.templates.pieces import Piece
from llmtune.types import Json, ToolCall

if TYPE_CHECKING:
    from llmtune.templates.chat import ChatTemplate


ToolsPlace: TypeAlias = Literal["system", "first question", "last question"]


@dataclass(frozen=True, slots=True)
class At:
    """Position in a conversation.

    `num_calls`: calls, or results, before it. `after_results`: a response that follows tool results.
    `ids`: ids, in the data, of the calls that the results belong to.
    """

    num_calls: int = 0
    after_results: bool = False
    ids: tuple[str | None, ...] = ()


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """A parsed response: its text, and its calls."""

    content: str
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolFormat(Entry):
    """Format of tools, tool calls and tool results for one family of models.

    Give `write_tools` or `write_tools_apart`, and `write_results` or `write_results_as_question`. Text with control
    tokens is a Piece of its own, not marked as data: in data their spelling is encoded as text.

    Attributes:
        tools_in: The message that the tools are written into.
        write_tools: (that text or None, schemas) -> the text with the tools.
        write_tools_apart: schemas -> the text before the system prompt, or before the last question.
        write_calls: (text of the response, calls, where) -> the model's text. Raises a TemplateError for calls
            that the family cannot make.
        write_answer: (text, where) -> a response without calls, in rows with tools. None: as it is.
        write_results: (results, where) -> the text after the calls, up to where the generation continues.
        write_results_as_question: results -> the user message of a turn of its own.
        call_end: Text that the model writes after its calls instead of the turn's end, where results continue the
            same turn; a generation stops there.
        parse: A response's text -> content and calls. Text that only looks like a call stays content.
        opens: Start of a call; from there on a streamed response is held back until it can be parsed.
        source: Source of these facts.
    """

    tools_in: ToolsPlace = "system"
    write_tools: Callable[[str | None, Sequence[Json]], str] | None = None
    write_tools_apart: Callable[[Sequence[Json]], list[Piece]] | None = None
    write_calls: Callable[[str, Sequence[ToolCall], At], list[Piece]]
    write_answer: Callable[[str, At], str] | None = None
    write_results: Callable[[Sequence[str], At], list[Piece]] | None = None
    write_results_as_question: Callable[[Sequence[str]], str] | None = None
    call_end: str | None = None
    parse: Callable[[str], ParsedAnswer]
    opens: tuple[str, ...]
    source: str = ""

    def __post_init__(self) -> None:
        if (self.write_tools is None) == (self.write_tools_apart is None):
            raise UsageError("A tool format needs write_tools or write_tools_apart.")
        if (self.write_results is None) == (self.write_results_as_question is None):
            raise UsageError("A tool format needs write_results or write_results_as_question.")

    @property
    def stop_words(self) -> tuple[str, ...]:
        """Texts that end a response in rows with tools, beside those of the template."""
        return () if self.call_end is None else (self.call_end.strip(),)

    @property
    def keeps_prefixes(self) -> bool:
        """Whether the tools keep their position as further questions are added."""
        return self.tools_in != "last question"


TOOL_FORMAT_MAPPING: Registry[ToolFormat] = Registry(
    "tool format",
    ToolFormat,
    builtin="llmtune.templates.tools.families",
    entry_points="llmtune.tool_formats",
    list_command="llmtune list tool_formats",
)
register_tool_format = TOOL_FORMAT_MAPPING.register


# Write JSON like chat templates, and parse calls written by models


def to_json(value: Json, *, indent: int | None = None) -> str:
    """Return JSON in the form of the `tojson` filter that transformers gives to chat templates."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def arguments_text(call: ToolCall) -> str:
    """Return the arguments as JSON; text arguments of the data stay as they are."""
    return call.arguments if isinstance(call.arguments, str) else to_json(call.arguments)


def call_id(number: int) -> str:
    """Return a call's id in the nine characters that Mistral's template requires: a counter, as rows have none."""
    return f"{number:09d}"


def function_of(tool: Json) -> Mapping[str, Any]:
    """Return a schema without the wrapper {"type": "function", "function": ...} that it may have."""
    inner = tool.get("function") if isinstance(tool, Mapping) else None
    return inner if isinstance(inner, Mapping) else tool


def call_of(value: Json) -> ToolCall | None:
    """Return {"name": ..., "arguments" or "parameters": ...} as a call; None for anything else."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    arguments = next((value[key] for key in ("arguments", "parameters") if key in value), None)
    return ToolCall(value["name"], arguments) if isinstance(arguments, Mapping | str) else None


def calls_at_start(text: str) -> tuple[ToolCall, ...]:
    """Return the calls that a text consists of: JSON objects or lists of them in a row, separated by `;`."""
    decoder = json.JSONDecoder()
    calls: list[ToolCall] = []
    rest = text.strip()
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            return ()
        found = [call_of(item) for item in (value if isinstance(value, list) else [value])]
        if not found or None in found:
            return ()
        calls += [call for call in found if call is not None]
        rest = rest[end:].lstrip(" \n;")
    return tuple(calls)


# Find the tool format of a template: its own, or that of the tokenizer's own chat template


MARKS = {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS]", "llama3.1": '"parameters": '}
"""Text in a tokenizer's chat template that identifies its tool format."""


def tool_format_of(template: ChatTemplate) -> ToolFormat | None:
    """Return the tool format of a template; None where it has none."""
    if not template.info.from_tokenizer:
        return template.info.tools
    text = str(getattr(template.tokenizer, "chat_template", "") or "")
    key = next((key for key, mark in MARKS.items() if mark in text and "tool_calls" in text), None)
    return None if key is None else TOOL_FORMAT_MAPPING[key]
