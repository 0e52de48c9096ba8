"""The tools that ship with llmtune."""

from llmtune.tool_functions.info import register_tool

register_tool(
    "calculate",
    function="llmtune.tool_functions.calculator:calculate",
    description="Arithmetic: numbers with + - * / ** % and brackets.",
)
