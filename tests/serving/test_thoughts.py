"""Thoughts over the API: given back as reasoning_content, taken from histories, switched off by a request."""

from __future__ import annotations

import openai
import pytest

from .conftest import train

pytestmark = pytest.mark.medium  # a training

ROWS = [
    {"messages": [{"role": "user", "content": question},
                  {"role": "assistant", "content": f"<think>\nIt is {thought}.\n</think>\n\n{answer}"}]}
    for question, thought, answer in (("one plus one", "easy", "Two."), ("the sky", "blue", "Blue!"))
]  # fmt: skip


@pytest.fixture(scope="module")
def thinking(tmp_path_factory, serving):
    folder = train(tmp_path_factory.mktemp("thinking"), ROWS, sft_type="full", template_type="qwen3", batch_size=2)
    with serving(ckpt_dir=str(folder), max_new_tokens=60) as server:
        yield server


def ask(server, content, **options):
    messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
    return server.client().chat.completions.create(
        model=server.service.args.main_name, messages=messages, temperature=0, **options
    )


def test_thoughts_are_streamed_separately(thinking):
    found = ask(thinking, "one plus one").choices[0]
    assert found.message.content == "Two."
    assert found.message.reasoning_content == "It is easy."
    streamed = list(ask(thinking, "the sky", stream=True))
    deltas = [chunk.choices[0].delta for chunk in streamed]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "It is blue."
    assert "".join(delta.content or "" for delta in deltas) == "Blue!"
    cut = ask(thinking, "the sky", max_tokens=6).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("", "length")
    assert cut.message.reasoning_content


def test_a_request_switches_thoughts_off(thinking):
    body = {"chat_template_kwargs": {"enable_thinking": False}}
    found = ask(thinking, "one plus one", extra_body=body)
    assert found.usage.prompt_tokens > ask(thinking, "one plus one").usage.prompt_tokens
    assert not hasattr(found.choices[0].message, "reasoning_content")
    with pytest.raises(openai.BadRequestError, match="auto"):
        ask(thinking, "the sky", extra_body={"chat_template_kwargs": {"reasoning_effort": "low"}})


def test_histories_may_hold_thoughts(thinking):
    history = [
        {"role": "user", "content": "the sky"},
        {"role": "assistant", "content": "Blue!", "reasoning_content": "It is blue."},
        {"role": "user", "content": "one plus one"},
    ]
    assert ask(thinking, history).choices[0].message.content
