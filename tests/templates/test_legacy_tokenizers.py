"""Templates of 2023 on the tokenizers of 2023: the ids that the families' own chat code gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtune.templates.lookup import get_template
from llmtune.types import IGNORE_INDEX, Conversation, Message

pytestmark = pytest.mark.medium  # real vocabularies

contents = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="▁\x00"), min_size=1, max_size=20),
    st.sampled_from(["  two  blanks ", "a\n\nb", "你好\n", " x", "🙂", "1", "[INST]", "问：", "<|User|>:"]),
).filter(lambda text: text.strip() and not any(token in text for token in ("<s>", "</s>", "<unk>")))
rows = st.lists(st.tuples(contents, contents), min_size=1, max_size=3)
many = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


def conversation(turns: list[tuple[str, str]], system: str | None = None) -> Conversation:
    messages = [Message("system", system)] if system is not None else []
    for question, answer in turns:
        messages += [Message("user", question), Message("assistant", answer, loss=True)]
    return Conversation(tuple(messages))


def ids_and_prompt(template: Any, row: Conversation) -> tuple[list[int], list[int]]:
    ids = template.encode_rows([row])[0].samples[-1].input_ids
    prompt = template.encode_prompts([Conversation(row.messages[:-1])])[0]
    assert ids[: len(prompt)] == prompt
    return ids, prompt


def pieces_of(assets: Path, family: str) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(assets / "tokenizers" / family / "tokenizer.model"))


@many
@given(turns=rows, system=st.sampled_from([None, "Be brief."]))
def test_llama_encodes_each_turn_as_the_original(assets, real_tokenizer, turns, system):
    """As chat_completion in llama/generation.py writes it: each turn a text of its own, between BOS and EOS."""
    original = pieces_of(assets, "llama2")
    template = get_template("llama", real_tokenizer("llama2"), system=None)
    row = conversation(turns, "Be brief." if system is None else system)
    expected: list[int] = []
    for number, (question, answer) in enumerate(turns):
        if number == 0:
            question = f"<<SYS>>\nBe brief.\n<</SYS>>\n\n{question.strip()}"
        prompt = f"[INST] {question.strip()} [/INST]"
        if number == len(turns) - 1:
            last = [*expected, 1, *original.encode(prompt)]
        expected += [1, *original.encode(f"{prompt} {answer.strip()} "), 2]
    ids, prompt = ids_and_prompt(template, row)
    assert prompt == last
    assert ids == expected


def test_llama_without_a_system_prompt(assets, real_tokenizer):
    original = pieces_of(assets, "llama2")
    template = get_template("llama", real_tokenizer("llama2"), system="")
    row = conversation([("Hi", "Hello"), ("你是谁？", "I am\nLlama")])
    text = ["[INST] <<SYS>>\n\n<</SYS>>\n\nHi [/INST] Hello ", "[INST] 你是谁？ [/INST] I am\nLlama "]
    assert ids_and_prompt(template, row)[0] == [1, *original.encode(text[0]), 2, 1, *original.encode(text[1]), 2]


@many
@given(turns=rows)
def test_internlm_encodes_as_the_original(assets, real_tokenizer, turns):
    """Its file has no blank before a text, and its control tokens stand in the file: the library finds them itself."""
    original = pieces_of(assets, "internlm_v1")
    template = get_template("internlm", real_tokenizer("internlm_v1"))
    text = "\n".join(f"<|User|>:{question}<eoh>\n<|Bot|>:{answer}<eoa>" for question, answer in turns)
    ids, prompt = ids_and_prompt(template, conversation(turns))
    expected = [1, *original.encode(text)]
    if expected[: len(prompt)] == prompt and len(turns) == 1:  # else a token lies across the start of an answer
        assert ids == expected
    assert real_tokenizer("internlm_v1").decode(ids) == "<s>" + text


@pytest.mark.parametrize(
    ("name", "family", "system", "expected"),
    [
        ("baichuan", "baichuan2", "",
         [195, "Hi", 196, "Yes", 195, "你好", 196, "好", 2]),
        ("chatglm2", "chatglm3", "",
         [64790, 64792, "[Round 1]\n\n问：Hi\n\n答：Yes\n\n[Round 2]\n\n问：你好\n\n答：好", 2]),
        ("chatml", "qwen_v1", "S",
         [151644, "system\nS", 151645, "\n", 151644, "user\nHi", 151645, "\n", 151644, "assistant\nYes", 151645, "\n",
          151644, "user\n你好", 151645, "\n", 151644, "assistant\n好", 151645]),
        ("chatglm3", "chatglm3", "S",
         [64790, 64792, 64794, "\n S", 64795, "\n Hi", 64796, "\n Yes", 64795, "\n 你好", 64796, "\n 好", 64795]),
        ("internlm2", "internlm2", "S",
         [1, 92543, "system\nS", 92542, "\n", 92543, "user\nHi", 92542, "\n", 92543, "assistant\nYes", 92542, "\n",
          92543, "user\n你好", 92542, "\n", 92543, "assistant\n好", 92542]),
    ],
)  # fmt: skip
def test_control_tokens_are_single_ids(name, family, system, expected, real_tokenizer):
    tokenizer = real_tokenizer(family)
    template = get_template(name, tokenizer)
    row = conversation([("Hi", "Yes"), ("你好", "好")], system or None)
    ids, _ = ids_and_prompt(template, row)
    found: list[int] = []
    for item in expected:
        found += [item] if isinstance(item, int) else tokenizer(item, add_special_tokens=False)["input_ids"]
    assert ids == found
    labels = template.encode_rows([row])[0].samples[-1].labels
    assert labels[-1] == ids[-1] == expected[-1]
    assert labels[0] == IGNORE_INDEX


@pytest.mark.parametrize("family", ["llama2", "baichuan2", "chatglm3", "internlm_v1", "qwen_v1"])
def test_a_control_tokens_spelling_in_the_data_is_text(family, real_tokenizer):
    """The text goes on around it: no blank is put before a content, or behind it, because of that."""
    tokenizer = real_tokenizer(family)
    spelling = tokenizer.eos_token
    template = get_template("default", tokenizer)
    row = conversation([(f"What is {spelling}?", f"{spelling} ends it.")])
    ids, _ = ids_and_prompt(template, row)
    assert ids.count(tokenizer.eos_token_id) == 1
    text = f"### Human:\nWhat is {spelling}?\n\n### Assistant:\n{spelling} ends it."
    assert tokenizer.decode(ids[:-1]).endswith(text)


def test_words_with_sop_in_them(real_tokenizer):
    tokenizer = real_tokenizer("chatglm3")
    template = get_template("chatglm3", tokenizer)
    rendered = "[gMASK]sop<|user|>\n Philosophy?<|assistant|>\n It is sophisticated."
    ids, _ = ids_and_prompt(template, conversation([("Philosophy?", "It is sophisticated.")]))
    assert ids[:-1] == tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert json.dumps(ids).count("64792") == 1
