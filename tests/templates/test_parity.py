"""Law 1: what is encoded equals the tokenizer's own chat template, and what inference feeds begins what was trained."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtune.data.formats import to_conversation
from llmtune.errors import TemplateError
from llmtune.templates.lookup import get_template
from llmtune.templates.parity import first_difference, upstream_ids
from llmtune.types import IGNORE_INDEX, Conversation, Message, ToolCall

PAIRS = {
    "qwen1.5": "qwen1_5",
    "qwen2.5": "qwen2_5",
    "qwen3": "qwen3",
    "qwen3-nothinking": "qwen3",
    "llama3": "llama3_1",
    "internlm2": "internlm2",
    "chatglm3": "chatglm3",
}
STOPS = {"chatglm3": 0}  # its chat template ends with the answer; elsewhere with one stop token
WITHOUT_SYSTEM = {"chatglm3"}  # the files name no <|system|> token

ends = st.sampled_from(["", " ", "\n", "\n\n", "  ", " \n", "\t", "\n "])
middles = st.one_of(
    st.text(alphabet=st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="<>[]|"), max_size=12),
    st.sampled_from(
        ["", "你好，世界", "🙂🏽👩‍👩‍👧", "é", "1 + 2 = 3", "{{QUERY}} {{SYSTEM}}", "a\n\nb", "Ω≈ç√", "ปี", "{% x %}"]
    ),
)
contents = st.builds(lambda a, b, c: a + b + c, ends, middles, ends)


@st.composite
def conversations(draw, *, with_system: bool = True) -> Conversation:
    turns = draw(st.integers(1, 3))
    messages = []
    if with_system and draw(st.booleans()):
        messages.append(Message("system", draw(contents)))
    for _ in range(turns):
        messages += [Message("user", draw(contents)), Message("assistant", draw(contents), loss=True)]
    return Conversation(tuple(messages))


many = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def expected_labels(template, conversation: Conversation) -> list[str]:
    """What has to be trainable of a conversation whose answers are all trainable, as text."""
    return [turn.content for turn in conversation.turns if turn.role == "assistant"]


def own_ids(tokenizer, conversation, options):
    """The chat template's ids up to the final stop token, that is without what follows the last answer's end."""
    ids = upstream_ids(tokenizer, conversation, **options)
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    return ids[: -len(newline)] if ids[-len(newline) :] == newline and len(newline) == 1 else ids


@pytest.mark.parametrize("name", PAIRS)
@many
@given(data=st.data())
def test_encoding_equals_the_tokenizers_own(name, real_tokenizer, data):
    tokenizer = real_tokenizer(PAIRS[name])
    template = get_template(name, tokenizer)
    row = data.draw(conversations(with_system=name not in WITHOUT_SYSTEM))
    options = {"enable_thinking": False} if template.info.answer_prefix else {}
    prompt = Conversation(row.messages[:-1])
    assert template.encode_prompts([prompt])[0] == upstream_ids(
        tokenizer, prompt, add_generation_prompt=True, **options
    )

    encoded = template.encode_rows([row])[0].samples[-1]
    ours = encoded.input_ids if name != "chatglm3" else encoded.input_ids[:-1]
    theirs = own_ids(tokenizer, row, options)
    # At the start of a trainable answer the prompt ends: a token that the whole text has across it is split there.
    prompt_ids = template.encode_prompts([prompt])[0]
    assert encoded.input_ids[: len(prompt_ids)] == prompt_ids
    if theirs[: len(prompt_ids)] == prompt_ids:
        assert ours == theirs
    else:
        assert tokenizer.decode(ours) == tokenizer.decode(theirs)


@pytest.mark.parametrize("name", PAIRS)
@many
@given(data=st.data())
def test_every_turn_is_trained_after_the_served_prompt(name, real_tokenizer, data):
    tokenizer = real_tokenizer(PAIRS[name])
    template = get_template(name, tokenizer)
    row = data.draw(conversations(with_system=name not in WITHOUT_SYSTEM))
    options = {"enable_thinking": False} if template.info.answer_prefix else {}
    answers = [index for index, message in enumerate(row.messages) if message.role == "assistant"]
    prompts = [
        upstream_ids(tokenizer, Conversation(row.messages[:index]), add_generation_prompt=True, **options)
        for index in answers
    ]
    found = []
    for sample in template.encode_rows([row])[0].samples:
        ids, labels = sample.input_ids, sample.labels
        assert len(ids) == len(labels)
        assert all(label in (IGNORE_INDEX, token) for label, token in zip(labels, ids, strict=True))
        starts = [i for i in range(1, len(ids)) if labels[i] != IGNORE_INDEX and labels[i - 1] == IGNORE_INDEX]
        found += [ids[:start] for start in starts]
        for start in starts:  # and its stop token is trainable
            end = next((i for i in range(start, len(ids)) if labels[i] == IGNORE_INDEX), len(ids))
            assert ids[end - 1] in template.stop_token_ids or name == "chatglm3"
    assert found == prompts


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "qwen3-nothinking"])
def test_tools_equal_the_tokenizers_own(name, real_tokenizer):
    tokenizer = real_tokenizer(PAIRS[name])
    template = get_template(name, tokenizer)
    schema = {"type": "function", "function": {"name": "find", "description": "查找", "parameters": {"type": "object"}}}
    calls = (ToolCall("find", {"q": "茶"}), ToolCall("find", {"q": "x", "n": 2}))
    for system in ((), (Message("system", "Be brief."),)):
        row = Conversation(
            (
                *system,
                Message("user", "Find tea."),
                Message("assistant", "Looking.", loss=True, tool_calls=calls),
                Message("tool", '{"a": 1}'),
                Message("tool", "two"),
                Message("assistant", "", loss=True, tool_calls=calls[:1]),
                Message("tool", "three"),
                Message("assistant", "Here.", loss=True),
            ),
            tools=(schema,),
        )
        options = {"enable_thinking": False} if template.info.answer_prefix else {}
        for end in (len(system) + 1, len(system) + 4, len(system) + 6):
            prompt = Conversation(row.messages[:end], row.tools)
            theirs = upstream_ids(tokenizer, prompt, add_generation_prompt=True, **options)
            assert template.encode_prompts([prompt])[0] == theirs
        last = template.encode_rows([row])[0].samples[-1]
        assert last.input_ids == own_ids(tokenizer, row, options)


def test_earlier_thoughts_are_dropped_as_the_tokenizers_own_does(real_tokenizer):
    tokenizer = real_tokenizer("qwen3")
    template = get_template("qwen3", tokenizer)
    thought = "<think>\nHm, \n</think>\n\n"
    row = {"messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": thought + "b"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": thought + "d"},
    ]}  # fmt: skip
    first, second = template.encode_all(row)
    assert "Hm" in tokenizer.decode(first["input_ids"])
    assert second["input_ids"] == own_ids(tokenizer, to_conversation(row), {})
    assert tokenizer.decode(second["input_ids"]).count("Hm") == 1
    assert template.encode(row) == second
    with pytest.raises(TemplateError, match="qwen3-nothinking"):
        get_template("qwen3-nothinking", tokenizer).encode(row)


@pytest.mark.parametrize("name", PAIRS)
def test_prompts_of_real_rows_equal_the_tokenizers_own(name, real_tokenizer, assets):
    """The prompts of real rows, several turns and tools among them, equal the tokenizer's own."""
    template = get_template(name, real_tokenizer(PAIRS[name]))
    rows = []
    for file in (
        "alpaca_en_demo.json",
        "alpaca_zh_demo.json",
        "kto_en_demo.json",
        "tang_poems/Tang_training_data.json",
    ):
        content = json.loads((assets / "data" / file).read_text(encoding="utf-8"))
        rows += [to_conversation(row) for row in content[:80]]
    if template.info.tool_format and "tools" in template.tokenizer.chat_template:
        content = json.loads((assets / "data/glaive_toolcall_en_demo.json").read_text(encoding="utf-8"))
        rows += [to_conversation(row) for row in content[:80]]
    assert len(rows) >= 320
    assert first_difference(template, rows) is None


def test_a_difference_from_the_tokenizers_template_is_logged(real_tokenizer):
    template = get_template("default", real_tokenizer("qwen2_5"))
    told = first_difference(template, [to_conversation({"query": "a", "response": "b"})])
    assert told is not None
    assert "'default'" in told
    assert "Human" in told
