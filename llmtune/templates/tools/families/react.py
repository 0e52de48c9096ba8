"""ReAct in the form of Qwen's first generation: thoughts, actions and observations in one response."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from llmtune.errors import TemplateError
from llmtune.templates.pieces import Piece
from llmtune.templates.tools.info import At, ParsedAnswer, arguments_text, function_of, register_tool_format, to_json
from llmtune.types import Json, ToolCall

TOOL = (
    "{name}: Call this tool to interact with the {human} API. What is the {human} API useful for? {text} "
    "Parameters: {parameters}"
)
INSTRUCTION = """Answer the following questions as best you can. You have access to the following APIs:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!

Question: {question}"""
THOUGHT = "Thought:"
FINAL = "Final Answer:"
NOW_KNOWN = f"{THOUGHT} I now know the final answer.\n{FINAL} "

ACTION = re.compile(
    r"(?:\A|\n)Action:(?P<name>[^\n]*)\nAction Input:(?P<arguments>.*?)"
    r"(?=\nAction:[^\n]*\nAction Input:|\nThought:|\nObservation:|\Z)",
    re.DOTALL,
)


def write_tools(question: str | None, tools: Sequence[Json]) -> str:
    functions = [function_of(tool) for tool in tools]
    names = [str(one.get("name_for_model") or one.get("name", "")) for one in functions]
    written = []
    for name, one in zip(names, functions, strict=True):
        text = str(one.get("description_for_model") or one.get("description", ""))
        human = str(one.get("name_for_human") or one.get("name", ""))
        parameters = to_json(one.get("parameters", {}))
        written.append(TOOL.format(name=name, human=human, text=text, parameters=parameters))
    return INSTRUCTION.format(tools="\n\n".join(written), names=", ".join(names), question=question or "")


def write_calls(content: str, calls: Sequence[ToolCall], at: At) -> list[Piece]:
    """Return the thought, then the call."""
    if len(calls) > 1:
        raise TemplateError(f"ReAct makes one call at a time, and a response of the row makes {len(calls)}")
    (call,) = calls
    thought = _opening(content.strip() or f"I can use {call.name}.", at)
    return [Piece(f"{thought}\nAction: {call.name}\nAction Input: {arguments_text(call)}", from_data=True)]


def write_answer(content: str, at: At) -> str:
    has_form = content.lstrip().startswith(THOUGHT) or FINAL in content
    return _opening(content if has_form else NOW_KNOWN + content, at)


def _opening(text: str, at: At) -> str:
    """Write a text; after an observation the prompt ends with `Thought:`, which the model continues."""
    text = text if text.startswith(THOUGHT) else f"{THOUGHT} {text}"
    return text.removeprefix(THOUGHT) if at.after_results else text


def write_results(results: Sequence[str], at: At) -> list[Piece]:
    return [Piece(" "), Piece("\n".join(results), from_data=True), Piece(f"\n{THOUGHT}")]


def parse(text: str) -> ParsedAnswer:
    made, _, _ = text.partition("\nObservation:")  # what comes behind it is the tool's
    found = [one for one in ACTION.finditer(made) if one["name"].strip()]
    if found:
        thought = text[: found[0].start()].strip().removeprefix(THOUGHT).strip()
        calls = [ToolCall(one["name"].strip(), _arguments(one["arguments"].strip())) for one in found]
        return ParsedAnswer(thought, tuple(calls))
    _, mark, answer = text.rpartition(FINAL)
    return ParsedAnswer(answer.strip() if mark else text)


def _arguments(text: str) -> Json:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


register_tool_format(
    "react",
    tools_in="last question",
    write_tools=write_tools,
    write_calls=write_calls,
    write_answer=write_answer,
    write_results=write_results,
    call_end="\nObservation:",
    parse=parse,
    opens=("",),
    source="https://github.com/QwenLM/Qwen: parse_messages, parse_response of openai_api.py; examples/react_prompt.md",
)
