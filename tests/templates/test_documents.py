"""Documents of pre-training: their ids, their windows, and each token once as a label."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtune.errors import UsageError
from llmtune.templates.documents import is_document, window_bounds
from llmtune.templates.lookup import get_template
from llmtune.types import IGNORE_INDEX, Conversation, Message

REAL = ["baichuan2", "chatglm3", "internlm2", "llama2", "llama3_1", "qwen1_5", "qwen2_5", "qwen3", "qwen_v1"]
TEXTS = [
    "Once upon a time, there was a model. It read all day.\n\nThe end.",
    "从前有一个模型,它每天读书。它读了很多很多的书,后来它学会了说话。🙂🙂",
    "  blanks at both ends, tabs\tand\r\nline breaks  ",
    "x",
    "1 2 3 4 5 6 7 8 9 10 " * 20,
]
CHAT = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello!"}]}


def text_row(text: str) -> Conversation:
    return Conversation((Message("assistant", text, loss=True),))


def documents(tokenizer: Any, size: int | None = None, *, joined: bool = False, **options: Any) -> Any:
    kind: Any = "joined" if joined else "windows"
    return get_template("default-generation", tokenizer, max_length=size, documents=kind, **options)


def expected_ids(tokenizer: Any, text: str) -> list[int]:
    return [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]


def check_windows(tokenizer: Any, text: str, size: int) -> None:
    """Together, the windows are the document, and each of its tokens but the first of all is a label once."""
    whole = expected_ids(tokenizer, text)
    template = documents(tokenizer, size, special_tokens_in_text="special")
    (row,) = template.encode_rows([text_row(text)])
    num_before = len(template.frame[0])
    num_unlearned = max(num_before, 1)
    assert row.problem is None
    windows = row.samples
    assert all(2 <= len(window.input_ids) <= size for window in windows)
    joined = windows[0].input_ids + [token for window in windows[1:] for token in window.input_ids[1:]]
    assert joined == whole
    labels = [label for window in windows for label in window.labels if label != IGNORE_INDEX]
    assert labels == whole[num_unlearned:]
    for window in windows:
        assert window.labels[0] == IGNORE_INDEX
        pairs = zip(window.input_ids, window.labels, strict=True)
        assert all(label in (IGNORE_INDEX, token) for token, label in pairs)
    assert row.num_windows == len(windows)
    assert sum(window.input_ids.count(tokenizer.eos_token_id) for window in windows[:-1]) == 0, "none at borders"


@pytest.mark.parametrize("size", [4, 7, 16, 64, 10_000])
@pytest.mark.parametrize("text", TEXTS)
def test_each_token_is_a_label_once(tiny_tokenizer, text, size):
    check_windows(tiny_tokenizer, text, size)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(min_size=1, max_size=200).filter(str.strip), size=st.integers(3, 40))
def test_each_token_of_any_text_is_a_label_once(tiny_tokenizer, text, size):
    check_windows(tiny_tokenizer, text, size)


@pytest.mark.medium
@pytest.mark.parametrize("name", REAL)
def test_each_token_is_a_label_once_with_real_tokenizers(real_tokenizer, name):
    for text in TEXTS:
        for size in (5, 16, 33):
            check_windows(real_tokenizer(name), text, size)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "before"),
    [("llama2", ["<s>"]), ("llama3_1", ["<|begin_of_text|>"]), ("chatglm3", ["[gMASK]", "sop"]), ("qwen2_5", []),
     ("baichuan2", [])],
)  # fmt: skip
def test_a_document_begins_and_ends_as_its_tokenizer_says(real_tokenizer, name, before):
    tokenizer = real_tokenizer(name)
    found = documents(tokenizer).encode({"text": "Hello, world"})
    assert found["input_ids"][: len(before)] == tokenizer.convert_tokens_to_ids(before)
    assert found["labels"][: max(len(before), 1)] == [IGNORE_INDEX] * max(len(before), 1)
    assert found["labels"][-1] == tokenizer.eos_token_id
    assert found["input_ids"].count(tokenizer.eos_token_id) == 1


def test_windows_cover_any_length():
    for size in range(2, 9):
        for length in range(1, 40):
            bounds = list(window_bounds(length, size))
            covered = list(range(*bounds[0])) + [at for start, end in bounds[1:] for at in range(start + 1, end)]
            assert covered == list(range(length))
            assert max(end - start for start, end in bounds) <= size


def test_without_a_limit_a_document_is_one_window(tiny_tokenizer):
    (row,) = documents(tiny_tokenizer, -1).encode_rows([text_row(TEXTS[4])])
    assert [len(window.input_ids) for window in row.samples] == [len(expected_ids(tiny_tokenizer, TEXTS[4]))]


def test_conversations_beside_documents_are_those_of_sft(tiny_tokenizer):
    plain = get_template("chatml", tiny_tokenizer, max_length=64)
    mixed = get_template("chatml", tiny_tokenizer, max_length=64, documents="windows")
    assert mixed.encode(CHAT) == plain.encode(CHAT)
    assert mixed.render({"text": "Once."}) == "Once.<|im_end|>"
    assert mixed.render(CHAT) == plain.render(CHAT)
    assert mixed.encode_prompts([CHAT]) == plain.encode_prompts([CHAT])
    everything = get_template("chatml", tiny_tokenizer, loss_on="everything", documents="windows")
    assert everything.encode(CHAT)["labels"].count(IGNORE_INDEX) == 1


def test_rows_keep_their_order(tiny_tokenizer):
    template = get_template("chatml", tiny_tokenizer, documents="windows")
    chat = Conversation((Message("user", "a"), Message("assistant", "b", loss=True)))
    rows = template.encode_rows([chat, text_row("one"), chat, text_row("two")])
    assert [row.num_documents for row in rows] == [0, 1, 0, 1]
    assert [tiny_tokenizer.decode(row.samples[0].input_ids) for row in rows[1::2]] == ["one<|im_end|>", "two<|im_end|>"]


def test_a_system_prompt_is_not_put_before_a_document(tiny_tokenizer):
    template = get_template("chatml", tiny_tokenizer, system="Be kind.", documents="windows")
    assert template.render({"text": "Once."}) == "Once.<|im_end|>"


def test_the_tokenizers_own_template(tiny_tokenizer):
    template = get_template("auto", tiny_tokenizer, documents="windows", max_length=64)
    assert template.encode({"text": "Once."})["input_ids"] == expected_ids(tiny_tokenizer, "Once.")
    assert template.encode(CHAT) == get_template("auto", tiny_tokenizer, max_length=64).encode(CHAT)


def test_a_question_or_an_untrainable_text_is_no_document():
    assert is_document(text_row("a"))
    assert not is_document(Conversation((Message("user", "a"),)))
    assert not is_document(Conversation((Message("assistant", "a"),)))
    assert not is_document(Conversation((Message("system", "s"), Message("assistant", "a", loss=True))))


def test_a_control_tokens_spelling_is_text(tiny_tokenizer):
    found = documents(tiny_tokenizer).encode({"text": "the mark <|im_end|> ends"})
    assert found["input_ids"].count(tiny_tokenizer.eos_token_id) == 1


def test_joined_documents_are_whole_and_learn_their_first_token(tiny_tokenizer):
    (row,) = documents(tiny_tokenizer, 8, joined=True).encode_rows([text_row(TEXTS[0])])
    (sample,) = row.samples
    assert sample.labels == sample.input_ids == expected_ids(tiny_tokenizer, TEXTS[0])


@pytest.mark.medium
def test_a_joined_documents_bos_is_not_learned(real_tokenizer):
    tokenizer = real_tokenizer("llama2")
    (row,) = documents(tokenizer, joined=True).encode_rows([text_row("Hello")])
    assert row.samples[0].labels == [IGNORE_INDEX, *row.samples[0].input_ids[1:]]


@pytest.mark.parametrize("text", ["x", "What is 3?", "我是谁", "鑫 is split into bytes"])
def test_bytes_of_what_is_learned(tiny_tokenizer, text):
    (row,) = documents(tiny_tokenizer, 4).encode_rows([text_row(text)])
    first = tiny_tokenizer.decode(tiny_tokenizer(text)["input_ids"][:1])
    first_bytes = 0 if "\ufffd" in first else len(first.encode())
    assert row.num_bytes == len(text.encode()) - first_bytes
    (joined,) = documents(tiny_tokenizer, joined=True).encode_rows([text_row(text)])
    assert joined.num_bytes == len(text.encode())


def test_bytes_of_a_conversation_are_those_of_its_responses(tiny_tokenizer):
    template = get_template("chatml", tiny_tokenizer, documents="windows")
    chat = Conversation((Message("user", "which?"), Message("assistant", "我是 the one", loss=True)))
    (row,) = template.encode_rows([chat])
    assert row.num_bytes == len("我是 the one".encode())


@pytest.mark.medium
def test_all_bytes_count_where_bos_comes_first(real_tokenizer):
    (row,) = documents(real_tokenizer("llama2"), 5).encode_rows([text_row(TEXTS[1])])
    assert row.num_bytes == len(TEXTS[1].encode())


def test_a_tokenizer_without_eos_is_refused(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="no EOS token"):
        documents(tokenizer)
