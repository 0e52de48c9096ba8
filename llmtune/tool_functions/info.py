"""TOOL_MAPPING: functions that a model may call, by the keys of `--tool_functions`. Data only: no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmtune.errors import UsageError
from llmtune.registry import Entry, Registry


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolInfo(Entry):
    """A function that a model may call by its key.

    Attributes:
        function: A function, async or not, or `"module:attribute"`, imported on first use. It is called with the
            arguments of the call by name; the model reads what it returns: a text as it is, anything else as JSON.
        schema: Its schema as in the column `tools`; None: made of its type hints and docstring.
        description: One line for `llmtune list tools`.
    """

    function: str | Callable[..., Any]
    schema: Mapping[str, Any] | None = None
    description: str = ""

    def __post_init__(self) -> None:
        if self.schema is not None and not isinstance(self.schema, Mapping):
            raise UsageError("schema of a tool entry is a JSON schema: {'type': 'function', 'function': {...}}.")


TOOL_MAPPING: Registry[ToolInfo] = Registry(
    "tool",
    ToolInfo,
    builtin="llmtune.tool_functions.builtin",
    function_field="function",
    entry_points="llmtune.tools",
    list_command="llmtune list tools",
)
register_tool = TOOL_MAPPING.register
