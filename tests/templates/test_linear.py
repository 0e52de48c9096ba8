"""A conversation of 20,000 messages takes time in proportion: as a prompt of a server and as a row of training."""

from __future__ import annotations

import time

import pytest

from llmtune.templates.lookup import get_template
from llmtune.types import Conversation, Message, ToolCall

TOOL = {"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}
CALLS = (ToolCall("sky", {"place": "Bergen"}),)


def conversation(num_messages: int, *, tools: bool, loss: bool) -> Conversation:
    turns = []
    for number in range(num_messages // 4):
        turns += [Message("user", f"question {number}")]
        turns += [Message("assistant", "" if tools else "yes", tool_calls=CALLS if tools else ())]
        turns += [
            Message("tool" if tools else "user", f"rain {number}"),
            Message("assistant", f"answer {number}", loss),
        ]
    return Conversation(tuple(turns), (TOOL,) if tools else ())


def seconds(work) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("key", ["qwen2.5", "qwen3", "mistral-nemo", "chatml"])
def test_encoding_time_is_linear_in_messages(key, tools, tiny_tokenizer):
    tiny_tokenizer.bos_token = "<|endoftext|>"
    template = get_template(key, tiny_tokenizer)
    ratios = []
    for _ in range(3):  # the fewest of three: other processes share the machine
        made = []
        for size in (2_000, 20_000):
            prompt = conversation(size, tools=tools, loss=False)
            made.append(seconds(lambda prompt=prompt: template.prompts([prompt])))
        ratios.append(made[1] / made[0])
    assert min(ratios) < 25, ratios


@pytest.mark.parametrize("key", ["qwen2.5", "chatml"])
def test_a_long_row_of_training(key, tiny_tokenizer):
    """One sample with all its answers, whose borders are found in one pass."""
    template = get_template(key, tiny_tokenizer)
    ratios = []
    for _ in range(3):
        made = []
        for size in (2_000, 20_000):
            row = conversation(size, tools=False, loss=True)
            made.append(seconds(lambda row=row: template.encode_rows([row])))
        ratios.append(made[1] / made[0])
    (encoded,) = template.encode_rows([row])
    assert len(encoded.samples) == 1
    assert min(ratios) < 25, ratios
