"""How tools, calls of them and their results are written for a model, and how a call is read from its answer."""

from llmtune.templates.tools.info import TOOL_FORMAT_MAPPING, At, ParsedAnswer, ToolFormat, register_tool_format
from llmtune.templates.tools.of_template import tool_format_of

__all__ = ["TOOL_FORMAT_MAPPING", "At", "ParsedAnswer", "ToolFormat", "register_tool_format", "tool_format_of"]
