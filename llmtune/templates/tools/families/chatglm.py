"""ChatGLM3 and GLM-4: the function's name in the line of <|assistant|>, arguments below, the result as <|observation|>.

ChatGLM3 calls in Python, `tool_call(place='Bergen')`; GLM-4 in JSON.
"""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from llmtune.errors import TemplateError
from llmtune.templates.pieces import Piece
from llmtune.templates.tools.info import At, ParsedAnswer, arguments_text, function_of, register_tool_format, to_json
from llmtune.types import Json, ToolCall

OBSERVATION = "<|observation|>"
ASSISTANT = "<|assistant|>"

INSTRUCTION_3 = "Answer the following questions as best as you can. You have access to the following tools:"
CALL_3 = re.compile(r"\s*(?P<name>[\w.-]+)\s*\n\s*```python\n(?P<code>.*?)\n?```\s*", re.DOTALL)
IN_JSON_3 = re.compile(r"\s*tool_call\(\*\*(?P<arguments>\{.*\})\)\s*", re.DOTALL)
"""Placeholder of arguments whose names are not Python identifiers."""

INSTRUCTION_4 = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
)
TOOL_4 = "\n\n## {name}\n\n{schema}\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
CALL_4 = re.compile(r"\s*(?P<name>[\w.-]+)[^\S\n]*\n(?P<arguments>\{.*\})\s*", re.DOTALL)


def write_tools_3(system: str | None, tools: Sequence[Json]) -> str:
    return f"{system or INSTRUCTION_3}\n{to_json([function_of(tool) for tool in tools], indent=4)}"


def write_calls_3(content: str, calls: Sequence[ToolCall], at: At) -> list[Piece]:
    call = _single("ChatGLM3", content, calls)
    code = f"tool_call({_keywords(_as_mapping(call))})"
    return [Piece(f"{call.name}\n ```python\n{code}\n```", from_data=True)]


def write_results(results: Sequence[str], at: At, *, gap: str) -> list[Piece]:
    return [Piece(gap), Piece("\n".join(results), from_data=True), Piece(ASSISTANT)]


def parse_3(text: str) -> ParsedAnswer:
    found = CALL_3.fullmatch(text)
    arguments = None if found is None else _arguments_of(found["code"])
    if found is None or arguments is None:
        return ParsedAnswer(text)
    return ParsedAnswer("", (ToolCall(found["name"], arguments),))


def write_tools_4(tools: Sequence[Json]) -> list[Piece]:
    schemas = [function_of(tool) for tool in tools]
    written = [TOOL_4.format(name=one.get("name", ""), schema=to_json(one, indent=4)) for one in schemas]
    return [Piece(f"<|system|>\n{INSTRUCTION_4}"), Piece("".join(written), from_data=True)]


def write_calls_4(content: str, calls: Sequence[ToolCall], at: At) -> list[Piece]:
    call = _single("GLM-4", content, calls)
    return [Piece(f"{call.name}\n{arguments_text(call)}", from_data=True)]


def parse_4(text: str) -> ParsedAnswer:
    found = CALL_4.fullmatch(text)
    if found is None:
        return ParsedAnswer(text)
    try:
        arguments = json.loads(found["arguments"])
    except (ValueError, RecursionError):
        return ParsedAnswer(text)
    return ParsedAnswer("", (ToolCall(found["name"], arguments),))


def _single(family: str, content: str, calls: Sequence[ToolCall]) -> ToolCall:
    if len(calls) > 1:
        raise TemplateError(f"{family} makes one call at a time, and a response of the row makes {len(calls)}")
    if content.strip():
        raise TemplateError(f"{family} writes a call or a text, and a response of the row has both")
    return calls[0]


def _as_mapping(call: ToolCall) -> Mapping[str, Any]:
    arguments = call.arguments
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = None
    if not isinstance(arguments, Mapping):
        raise TemplateError(f"ChatGLM3 calls with named arguments, and the row's call of {call.name} has none")
    return arguments


def _keywords(arguments: Mapping[str, Any]) -> str:
    if all(key.isidentifier() and not keyword.iskeyword(key) for key in arguments):
        return ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"**{to_json(arguments)}"


def _arguments_of(code: str) -> dict[str, Any] | None:
    """Return the arguments of `tool_call(...)`; the code is parsed, not run."""
    in_json = IN_JSON_3.fullmatch(code)
    try:
        if in_json is not None:
            return dict(json.loads(in_json["arguments"]))
        call = ast.parse(code.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or getattr(call.func, "id", None) != "tool_call":
            return None
        if call.args or any(one.arg is None for one in call.keywords):
            return None
        found = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
        json.dumps(found)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return found


register_tool_format(
    "chatglm3",
    tools_in="system",
    write_tools=write_tools_3,
    write_calls=write_calls_3,
    write_results=partial(write_results, gap="\n "),
    call_end=OBSERVATION,
    parse=parse_3,
    opens=("",),
    source="https://huggingface.co/THUDM/chatglm3-6b: build_chat_input of tokenization_chatglm.py, process_response of "
    "modeling_chatglm.py",
)
register_tool_format(
    "glm4",
    tools_in="system",
    write_tools_apart=write_tools_4,
    write_calls=write_calls_4,
    write_results=partial(write_results, gap="\n"),
    call_end=OBSERVATION,
    parse=parse_4,
    opens=("",),
    source="chat_template of THUDM/glm-4-9b-chat's tokenizer_config.json",
)
