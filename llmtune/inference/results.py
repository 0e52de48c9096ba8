"""Records of responses in result files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmtune.inference.thoughts import split_answer
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.tools import At, ToolFormat, tool_format_of
from llmtune.templates.upstream import upstream_messages
from llmtune.types import Conversation, Message

__all__ = ["InferResult", "result_of", "scored_pair"]

InferResult = dict[str, Any]
"""`query`, `response`, `history` (pairs), `system` (the rendered one), and `label` where the row has a response.

Where the template writes thoughts, `response` and `label` are without them, and `reasoning_content` is the thought. A
row with tools also has `tools` and `messages`, the conversation before the response in OpenAI's format, and the parsed
response: `content` and `tool_calls`.
"""


def result_of(row: Conversation, answer: str, template: ChatTemplate) -> InferResult:
    """Return the record of one response."""
    turns = list(row.turns)
    wanted = turns.pop() if turns and turns[-1].role == "assistant" else None
    marks = template.thought_marks
    opened = turns[:1] != [] and template.opens_thought(row)
    thought, answer = split_answer(answer, marks, opened=opened)
    if wanted is not None and marks is not None and wanted.reasoning is None and marks.close in wanted.content:
        wanted = replace(wanted, content=marks.split(wanted.content, opened=True)[1])
    uses_tools = bool(row.tools) or any(turn.role == "tool" for turn in turns)
    query = turns[-1].content if turns else ""
    result: InferResult = {"query": query, "response": answer, "history": [], "system": template.system_of(row)}
    if thought is not None:
        result["reasoning_content"] = thought
    if not uses_tools:
        pairs = zip(turns[:-1:2], turns[1:-1:2], strict=False)
        result["history"] = [[question.content, earlier.content] for question, earlier in pairs]
        return result if wanted is None else result | {"label": wanted.content}
    tool_format = tool_format_of(template)
    result |= {"tools": list(row.tools), "messages": upstream_messages(Conversation(tuple(turns)))}
    if tool_format is not None:
        parsed = tool_format.parse(answer)
        calls = [{"name": call.name, "arguments": call.arguments} for call in parsed.calls]
        result |= {"content": parsed.content, "tool_calls": calls}
    return result if wanted is None else result | {"label": _label(turns, wanted, tool_format)}


def scored_pair(result: InferResult) -> tuple[str, str]:
    """Return (generated, reference) as the same kind of text: calls as written, responses without thoughts."""
    plain = "content" in result and not result["tool_calls"]
    return result["content" if plain else "response"], result["label"]


def _label(turns: list[Message], wanted: Message, tool_format: ToolFormat | None) -> str:
    if not wanted.tool_calls or tool_format is None:
        return wanted.content
    num_calls = sum(len(turn.tool_calls) for turn in turns)
    at = At(num_calls, after_results=bool(turns) and turns[-1].role == "tool")
    pieces = tool_format.write_calls(wanted.content, wanted.tool_calls, at)
    return "".join(str(piece.content) for piece in pieces if piece.from_data)  # control tokens are not decoded
