"""Chats and completions through the real openai client."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from ..waiting import until

ENDLESS = {"2": -100.0, "0": -100.0}
QUESTION = [{"role": "user", "content": "question 3"}]


def ask(client: openai.OpenAI, **options):
    return client.chat.completions.create(**{"model": "llmtune-tiny", "messages": QUESTION} | options)


def content(client: openai.OpenAI, **options) -> str:
    return ask(client, **options).choices[0].message.content


def test_the_trained_response_is_served(client):
    found = ask(client)
    assert found.choices[0].message.content == "answer 3!"
    assert found.choices[0].finish_reason == "stop"
    assert found.object == "chat.completion"
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert [model.id for model in client.models.list()] == ["llmtune-tiny"]
    assert client.models.retrieve("llmtune-tiny").id == "llmtune-tiny"


def test_the_prompt_is_that_of_training(client, server):
    """The system prompt of the run stands where the request has none."""
    template = server.service.template("llmtune-tiny")
    assert template.system == "be short"
    asked = template.encode({"query": "question 3"}, generation=True)["input_ids"]
    assert ask(client).usage.prompt_tokens == len(asked)
    other = ask(client, messages=[{"role": "system", "content": "be long, please"}, *QUESTION])
    assert other.usage.prompt_tokens != len(asked)


def test_a_stream_is_the_same_answer(client):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(pieces) == "answer 3!"
    assert sum(bool(piece) for piece in pieces) > 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == ask(client).usage
    assert list(ask(client, stream=True))[-1].usage is None


def test_n_stop_and_lengths(client):
    found = ask(client, n=3)
    assert [choice.message.content for choice in found.choices] == ["answer 3!"] * 3
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert content(client, stop="swer") == "an"
    assert content(client, stop=[" 3", "zzz"]) == "answer"
    short = ask(client, max_tokens=1).choices[0]
    assert short.finish_reason == "length"
    assert ask(client, max_completion_tokens=2).usage.completion_tokens == 2
    streamed = ask(client, stream=True, stop="wer 3", n=2)
    texts = {0: "", 1: ""}
    for chunk in streamed:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "ans", 1: "ans"}


def test_a_seed_gives_the_same_text_whoever_the_neighbours_are(client):
    options = {"temperature": 1.5, "logit_bias": ENDLESS, "max_tokens": 30}
    alone = content(client, seed=7, **options)
    assert alone != content(client, seed=8, **options)
    with ThreadPoolExecutor(6) as pool:
        seeds = [7, 1, 7, None, 2, 7]
        found = list(pool.map(lambda seed: content(client, seed=seed, **options), seeds))
    assert [text for seed, text in zip(seeds, found, strict=True) if seed == 7] == [alone] * 3
    two = [choice.message.content for choice in ask(client, seed=7, n=2, **options).choices]
    assert two[0] == alone != two[1]


def test_settings_of_its_own_for_each_request(client):
    """Side by side: greedy, a narrow draw (top_k 1 is greedy), a penalty."""
    wide = {"temperature": 3.0, "logit_bias": ENDLESS, "max_tokens": 20}
    asked = [
        {"temperature": 0},
        {**wide, "seed": 1},
        {"temperature": 3.0, "extra_body": {"top_k": 1}},
        {"temperature": 3.0, "top_p": 1e-6},
        {**wide, "seed": 2},
    ]
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda options: content(client, **options), asked))
    assert [found[0], found[2], found[3]] == ["answer 3!"] * 3
    assert found[1] != found[4]
    looped = content(client, logit_bias=ENDLESS, max_tokens=40)
    varied = content(
        client, logit_bias=ENDLESS, max_tokens=40, frequency_penalty=2, extra_body={"repetition_penalty": 5.0}
    )
    assert len(set(varied)) > len(set(looped))


def test_logprobs_cover_the_whole_text(client):
    found = ask(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert "".join(one.token for one in found) == "answer 3!"
    for one in found:
        assert one.logprob <= 0
        assert len(one.top_logprobs) == 3
        assert one.top_logprobs[0].token == one.token, "greedy takes the likeliest"
        assert bytes(one.bytes).decode() == one.token
    streamed = [
        one.token
        for chunk in ask(client, logprobs=True, stream=True)
        if chunk.choices[0].logprobs
        for one in chunk.choices[0].logprobs.content
    ]
    assert "".join(streamed) == "answer 3!"


@pytest.mark.parametrize("seed", range(4))
def test_json_object_is_one(client, seed):
    """A model that knows nothing of JSON writes an object, or runs out of tokens inside of one."""
    found = ask(client, response_format={"type": "json_object"}, seed=seed, temperature=1.0, max_tokens=120).choices[0]
    if found.finish_reason == "stop":
        assert isinstance(json.loads(found.message.content), dict)
    else:
        assert found.finish_reason == "length"
        assert found.message.content.startswith("{")


def test_several_turns_and_parts(client):
    earlier = [{"role": "user", "content": "question 1"}, {"role": "assistant", "content": "answer 1!"}]
    longer = ask(client, messages=[*earlier, *QUESTION])
    assert longer.choices[0].message.content
    assert longer.usage.prompt_tokens > ask(client).usage.prompt_tokens + 10
    parts = [{"role": "user", "content": [{"type": "text", "text": "question"}, {"type": "text", "text": " 3"}]}]
    assert content(client, messages=parts) == "answer 3!"


def test_completions_continue_text_or_ids(client, server):
    prompt = server.service.template("llmtune-tiny").render({"query": "question 5"}, generation=True)
    ids = server.service.template("llmtune-tiny").encode({"query": "question 5"}, generation=True)["input_ids"]
    options = {"model": "llmtune-tiny", "max_tokens": 12}
    assert client.completions.create(prompt=prompt, **options).choices[0].text == "answer 5!"
    assert client.completions.create(prompt=ids, **options).choices[0].text == "answer 5!"
    both = client.completions.create(prompt=[prompt, prompt.replace("5", "6")], n=2, **options).choices
    assert [choice.text for choice in both] == ["answer 5!"] * 2 + ["answer 6!"] * 2
    assert (
        "".join(c.choices[0].text for c in client.completions.create(prompt=prompt, stream=True, **options))
        == "answer 5!"
    )
    echoed = client.completions.create(prompt="question", echo=True, **options).choices[0].text
    assert echoed.startswith("question")
    scored = client.completions.create(prompt=prompt, logprobs=2, **options).choices[0].logprobs
    assert "".join(scored.tokens) == "answer 5!"
    assert scored.text_offset[1] == len(scored.tokens[0])


@pytest.mark.slow
def test_the_same_by_continuous_batching(serving, tuned):
    with serving(ckpt_dir=str(tuned), batching="continuous", max_batch_size=4) as server:
        client = server.client()
        with ThreadPoolExecutor(12) as pool:
            found = list(
                pool.map(
                    lambda i: content(client, messages=[{"role": "user", "content": f"question {i % 8}"}]), range(24)
                )
            )
        assert found == [f"answer {i % 8}!" for i in range(24)]
        streamed = ask(client, stream=True, logit_bias=ENDLESS, max_tokens=1900)
        assert next(chunk for chunk in streamed if chunk.choices[0].delta.content)
        assert server.service.batcher.num_running == 1
        streamed.close()
        assert content(client) == "answer 3!"
        until(lambda: server.service.is_idle)
