"""The text of an answer: what the model wrote, less what the template has it write around."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llmtune import TEMPLATE_MAPPING, get_template
from llmtune.inference.generation import Generation
from llmtune.inference.sampling import Sampling
from llmtune.inference.texts import Frame
from llmtune.models.tiny import tiny_folder
from llmtune.types import Conversation, Message

ANSWER = "Fine, thank you."
TALKS = sorted(
    key
    for key, info in TEMPLATE_MAPPING.items()
    if info.chat_sep is not None and info.keeps_prefixes and not info.from_tokenizer
)


OWN = (
    "{% for one in messages %}<|im_start|>{{ one.role }}\n{% if one.role == 'assistant' %} {{ one.content }}\n"
    "{% else %}{{ one.content }}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    found = AutoTokenizer.from_pretrained(str(tiny_folder()))
    found.bos_token, found.chat_template = "<|endoftext|>", OWN
    return found


@pytest.mark.parametrize("key", [*TALKS, "auto"])
def test_an_answer_goes_back_into_the_history_as_it_was_written(key, tokenizer):
    """The next prompt begins with the last one and what the model wrote to it."""
    template = get_template(key, tokenizer)
    asked = Conversation((Message("user", "How are you?"),))
    prompt = template.prompts([asked])[0]
    answered = replace(asked, messages=(*asked.messages, Message("assistant", ANSWER, loss=True)))
    ids = template.encode_rows([answered])[0].samples[0].input_ids
    assert ids[: len(prompt.input_ids)] == prompt.input_ids
    row = Generation(prompt, Sampling(max_new_tokens=99), template, frame=template.answer_frame)
    for token in ids[len(prompt.input_ids) :]:
        if row.add(token):
            break
    assert row.text == ANSWER
    history = (*asked.messages, Message("assistant", row.text), Message("user", "And now?"))
    again = template.prompts([Conversation(history)])[0].input_ids
    before, after = template.answer_frame
    written = before + ANSWER + after
    assert tokenizer.decode(row.ids).startswith(written)
    assert tokenizer.decode(again).startswith(tokenizer.decode(prompt.input_ids) + written)


@settings(max_examples=200, deadline=None)
@given(text=st.text("\n ab", max_size=12), cuts=st.lists(st.integers(0, 12)), frame=st.sampled_from(["", " ", "\n "]))
def test_a_frame_is_taken_off_piece_by_piece(text, cuts, frame):
    borders = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    taken = Frame(frame, " ")
    told = "".join(taken.add(text[start:end]) for start, end in pairwise(borders))
    assert told + taken.rest() == text.removeprefix(frame).removesuffix(" ")


def test_a_model_that_writes_nothing_but_marks_of_thoughts():
    """As one does at a high temperature: the text is as long as it is, and no stack is."""
    from llmtune.inference.texts import text_of
    from llmtune.models.loading import get_model_tokenizer

    _, tokenizer = get_model_tokenizer("llmtune-tiny", load_model=False)
    ids = tokenizer.encode(" one two", add_special_tokens=False)
    assert text_of(tokenizer, [*ids, 9, *ids, *([9] * 5000)], {9: "<t>"}) == " one two<t> one two" + "<t>" * 5000
    assert text_of(tokenizer, [], {9: "<t>"}) == ""
