"""What a tool format says. A template names its format; `template.py` asks it where a row has tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from llmtune.errors import UsageError
from llmtune.registry import Entry, Registry
from llmtune.templates.pieces import Piece
from llmtune.types import Json, ToolCall

__all__ = ["TOOL_FORMAT_MAPPING", "At", "ParsedAnswer", "ToolFormat", "ToolsPlace", "register_tool_format"]

ToolsPlace: TypeAlias = Literal["system", "first question", "last question"]


@dataclass(frozen=True, slots=True)
class At:
    """Where in a conversation something is written.

    `num_calls`: calls, or results, that stand before. `after_results`: an answer that goes on from results of tools.
    `ids`: the calls that the results belong to, as the data names them.
    """

    num_calls: int = 0
    after_results: bool = False
    ids: tuple[str | None, ...] = ()


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """An answer as a client wants it: its text, and the calls that it holds."""

    content: str
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolFormat(Entry):
    """How one family of models is told of tools, calls them, and reads what they gave.

    Give `write_tools` or `write_tools_apart`, and `write_results` or `write_results_as_question`. Text that holds
    control tokens is a Piece of its own, not marked as data: in data they are spelled out.

    Attributes:
        tools_in: The text that the tools are written into.
        write_tools: (that text or None, schemas) -> the text with the tools.
        write_tools_apart: schemas -> what stands before the system text, or before the last question.
        write_calls: (text of the answer, calls, where) -> what the model writes. Raises a TemplateError for calls
            that the family cannot make.
        write_answer: (text, where) -> an answer without calls, in rows with tools. None: as it is.
        write_results: (results, where) -> what stands behind the calls, up to where the model goes on.
        write_results_as_question: results -> the question of a turn of its own.
        call_end: What the model writes behind its calls in the place of the turn's end, where results go on in the
            same turn; a generation stops there.
        parse: An answer's text -> content and calls. Text that only looks like a call stays content.
        opens: What a call begins with; from there on a streamed answer is held back until it can be parsed.
        source: Where these facts come from.
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
            raise UsageError("A tool format has write_tools, or write_tools_apart.")
        if (self.write_results is None) == (self.write_results_as_question is None):
            raise UsageError("A tool format has write_results, or write_results_as_question.")

    @property
    def stop_words(self) -> tuple[str, ...]:
        """Texts that end an answer to a question with tools, beside those of the template."""
        return () if self.call_end is None else (self.call_end.strip(),)

    @property
    def keeps_prefixes(self) -> bool:
        """Whether the tools stay where they are as further questions are asked."""
        return self.tools_in != "last question"


TOOL_FORMAT_MAPPING: Registry[ToolFormat] = Registry(
    "tool format",
    ToolFormat,
    builtin="llmtune.templates.tools.families",
    entry_points="llmtune.tool_formats",
    list_command="llmtune list tool_formats",
)
register_tool_format = TOOL_FORMAT_MAPPING.register
