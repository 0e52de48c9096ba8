"""A conversation of 20,000 messages takes time in proportion: as a prompt of a server and as a row of training."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

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


def check_linear(work: Callable[[Conversation], Any], *, tools: bool, loss: bool) -> Any:
    """Ten times the messages take ten times as long, not a hundred; what the longer row gave.

    Other processes share the machine: a ratio that is too high is measured again, at most twice.
    """
    rows = [conversation(size, tools=tools, loss=loss) for size in (2_000, 20_000)]
    ratios: list[float] = []
    while not ratios or (ratios[-1] >= 25 and len(ratios) < 3):
        made = []
        for row in rows:
            started = time.process_time()
            found = work(row)
            made.append(time.process_time() - started)
        ratios.append(made[1] / made[0])
    assert min(ratios) < 25, ratios
    return found


@pytest.mark.medium
@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("key", ["qwen2.5", "qwen3", "mistral-nemo", "chatml"])
def test_encoding_time_is_linear_in_messages(key, tools, tiny_tokenizer):
    tiny_tokenizer.bos_token = "<|endoftext|>"
    template = get_template(key, tiny_tokenizer)
    check_linear(lambda row: template.prompts([row]), tools=tools, loss=False)


@pytest.mark.medium
@pytest.mark.parametrize("key", ["qwen2.5", "chatml"])
def test_a_long_row_of_training(key, tiny_tokenizer):
    """One sample with all its answers, whose borders are found in one pass."""
    template = get_template(key, tiny_tokenizer)
    (encoded,) = check_linear(lambda row: template.encode_rows([row]), tools=False, loss=True)
    assert len(encoded.samples) == 1
