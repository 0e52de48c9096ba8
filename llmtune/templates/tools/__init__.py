"""Tool formats: writing tools, calls and results for a model, and parsing calls from its responses."""

from llmtune.templates.tools.info import (
    TOOL_FORMAT_MAPPING,
    At,
    ParsedAnswer,
    ToolFormat,
    register_tool_format,
    tool_format_of,
)

__all__ = ["TOOL_FORMAT_MAPPING", "At", "ParsedAnswer", "ToolFormat", "register_tool_format", "tool_format_of"]
