"""Conversations that distinguish chat templates: turns, system prompts, white space, scripts, tools, thoughts."""

from __future__ import annotations

from llmtune.types import Conversation, Message, ToolCall

__all__ = ["PROBES"]

QUESTION, ANSWER = Message("user", "What is 1 plus 2?"), Message("assistant", "3.", loss=True)
SYSTEM = Message("system", "Be brief.")
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


def _turns(*contents: str, system: Message | None = None) -> Conversation:
    messages = tuple(
        Message("assistant", content, loss=True) if index % 2 else Message("user", content)
        for index, content in enumerate(contents)
    )
    return Conversation(messages if system is None else (system, *messages))


PROBES: dict[str, Conversation] = {
    "one turn": Conversation((QUESTION, ANSWER)),
    "a system prompt": Conversation((SYSTEM, QUESTION, ANSWER)),
    "two turns": _turns("One?", "Two.", "Three?", "Four."),
    "three turns, a system prompt": _turns("One?", "Two.", "Three?", "Four.", "Five?", "Six.", system=SYSTEM),
    "white space at the ends": _turns(" One?\n", "Two. ", "\n\nThree?", "Four.\n"),
    "an answer that begins with a newline": _turns("One?", "\nTwo."),
    "Chinese and emoji": _turns("你好，请写一首诗。", "床前明月光 🌙", "谢谢", "不客气 👍🏽"),
    "empty contents": _turns("", "Two.", "Three?", ""),
    "thoughts": _turns("One?", "<think>\nHm.\n</think>\n\nTwo.", "Three?", "<think>\nHm!\n</think>\n\nFour."),
    "tools": Conversation(
        (
            QUESTION,
            Message("assistant", "", loss=True, tool_calls=(ToolCall("weather", {"place": "Bergen"}),)),
            Message("tool", '{"sky": "rain"}'),
            Message("assistant", "Rain.", loss=True),
        ),
        tools=(WEATHER,),
    ),
}
