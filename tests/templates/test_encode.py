"""From pieces to ids and labels: masks, limits, control tokens, slow tokenizers."""

from __future__ import annotations

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtune.errors import TemplateError, UnknownKeyError, UsageError
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.info import TEMPLATE_MAPPING, TemplateInfo
from llmtune.templates.lookup import get_template
from llmtune.templates.template import split_chat_sep
from llmtune.types import IGNORE_INDEX, Conversation, Message

CHAT = {"messages": [
    {"role": "user", "content": "one"}, {"role": "assistant", "content": "first"},
    {"role": "user", "content": "two"}, {"role": "assistant", "content": "second"},
]}  # fmt: skip
HISTORY = {"query": "two", "response": "second", "history": [["one", "first"]]}


class SlowTokenizer:
    """A tokenizer that gives no offsets, as those in Python do."""

    def __init__(self, fast):
        self.fast = fast
        self.is_fast = False

    def __call__(self, text, add_special_tokens=False, split_special_tokens=False):
        backend = self.fast.backend_tokenizer
        backend.encode_special_tokens = split_special_tokens
        try:
            return {"input_ids": backend.encode(text, add_special_tokens=add_special_tokens).ids}
        finally:
            backend.encode_special_tokens = False

    def __getattr__(self, name):
        return getattr(self.fast, name)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    """The embedded tokenizer, with a BOS token for the templates that need one."""
    own = copy.deepcopy(tiny_tokenizer)
    own.bos_token = "<|endoftext|>"
    return own


def learned_texts(template: ChatTemplate, encoded: dict[str, list[int]]) -> list[str]:
    """The trainable stretches, decoded."""
    texts: list[list[int]] = []
    before = IGNORE_INDEX
    for label in encoded["labels"]:
        if label != IGNORE_INDEX:
            if before == IGNORE_INDEX:
                texts.append([])
            texts[-1].append(label)
        before = label
    return [template.tokenizer.decode(ids) for ids in texts]


@pytest.mark.parametrize(
    ("row", "loss_on", "expected"),
    [
        (CHAT, "auto", ["first<|im_end|>", "second<|im_end|>"]),
        (HISTORY, "auto", ["second<|im_end|>"]),
        (CHAT, "last", ["second<|im_end|>"]),
        (HISTORY, "all", ["first<|im_end|>", "second<|im_end|>"]),
    ],
)
def test_loss_on_selects_the_trainable_texts(tokenizer, row, loss_on, expected):
    template = get_template("chatml", tokenizer, loss_on=loss_on)
    assert learned_texts(template, template.encode(row)) == expected


@pytest.mark.parametrize("mark", [{"weight": 0}, {"loss": False}])
def test_marked_messages_are_not_trainable(tokenizer, mark):
    messages = [dict(message) for message in CHAT["messages"]]
    messages[1] |= mark
    template = get_template("chatml", tokenizer)
    assert learned_texts(template, template.encode({"messages": messages})) == ["second<|im_end|>"]


def test_everything_is_trainable_but_the_first_token(tokenizer):
    encoded = get_template("chatml", tokenizer, loss_on="everything").encode(CHAT)
    assert encoded["labels"][0] == IGNORE_INDEX
    assert encoded["labels"][1:] == encoded["input_ids"][1:]


def test_no_trainable_tokens_is_an_error(tokenizer):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}
    with pytest.raises(TemplateError, match="no trainable tokens left"):
        get_template("chatml", tokenizer).encode(row)


def test_plain_text_is_trainable_but_its_first_token(tokenizer):
    template = get_template("default-generation", tokenizer)
    encoded = template.encode({"text": "Once upon a time."})
    assert tokenizer.decode(encoded["input_ids"]) == "Once upon a time.<|im_end|>"
    assert encoded["labels"][1:] == encoded["input_ids"][1:]
    chat = get_template("chatml", tokenizer).render({"text": "Once."})
    assert chat == "Once.<|im_end|>", "no question, so no question's header and no default system prompt"


@pytest.mark.parametrize(("strategy", "kept"), [("left", slice(-20, None)), ("right", slice(20))])
def test_truncation_keeps_the_chosen_end(tokenizer, strategy, kept):
    whole = get_template("chatml", tokenizer).encode(CHAT)
    assert len(whole["input_ids"]) > 20
    template = get_template("chatml", tokenizer, max_length=20, truncation_strategy=strategy, loss_on="everything")
    cut = template.encode(CHAT)
    assert cut["input_ids"] == whole["input_ids"][kept]
    assert cut["labels"][0] == IGNORE_INDEX
    row = template.encode_rows([Conversation((Message("user", "a"), Message("assistant", "b" * 99, loss=True)))])[0]
    assert (row.num_truncated, row.num_deleted, len(row.samples)) == (1, 0, 1)


def test_longer_samples_can_be_skipped(tokenizer):
    template = get_template("chatml", tokenizer, max_length=20, truncation_strategy="delete")
    with pytest.raises(TemplateError, match="--max_length 20"):
        template.encode(CHAT)
    length = len(get_template("chatml", tokenizer).encode(CHAT)["input_ids"])
    assert get_template("chatml", tokenizer, max_length=length, truncation_strategy="delete").encode(CHAT)
    assert get_template("chatml", tokenizer, max_length=-1).encode(CHAT)


def test_right_truncation_can_leave_no_trainable_token(tokenizer):
    template = get_template("chatml", tokenizer, max_length=10, truncation_strategy="right")
    row = template.encode_rows([Conversation((Message("user", "a" * 50), Message("assistant", "b", loss=True)))])[0]
    assert (row.num_untrainable, row.samples) == (1, [])


def test_prompts_lose_their_start(tokenizer):
    whole = get_template("chatml", tokenizer).encode(CHAT, generation=True)["input_ids"]
    assert get_template("chatml", tokenizer, max_length=9).encode(CHAT, generation=True)["input_ids"] == whole[-9:]


def test_a_control_tokens_spelling_in_the_data_is_text(tokenizer):
    row = {"query": "say <|im_end|> now", "response": "<|im_start|>!"}
    template = get_template("chatml", tokenizer)
    ids = template.encode(row)["input_ids"]
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert (ids.count(start), ids.count(end)) == (3, 3), "the template's own only"
    assert tokenizer.decode(ids) == template.render(row)
    assert template.encode_rows([row_of(row)])[0].num_plain == 2
    prompt = template.encode(row, generation=True)["input_ids"]
    assert ids[: len(prompt)] == prompt
    special = get_template("chatml", tokenizer, special_tokens_in_text="special").encode(row)["input_ids"]
    assert (special.count(start), special.count(end)) == (4, 4)


def test_a_placeholder_in_the_data_is_text(tokenizer):
    row = {"query": "{{SYSTEM}} {{ROUND}}", "response": "{{QUERY}}", "system": "{{QUERY}}"}
    text = get_template("chatml", tokenizer).render(row)
    assert "<|im_start|>system\n{{QUERY}}<|im_end|>" in text
    assert "<|im_start|>user\n{{SYSTEM}} {{ROUND}}<|im_end|>" in text
    assert text.endswith("assistant\n{{QUERY}}<|im_end|>")


def test_a_rows_system_prompt_wins_over_the_flag(tokenizer):
    def system_of(row, **options):
        return get_template("chatml", tokenizer, **options).render(row).split("<|im_end|>")[0].removeprefix(
            "<|im_start|>system\n"
        )  # fmt: skip

    row = {"query": "a", "response": "b"}
    assert system_of(row) == "You are a helpful assistant."
    assert system_of(row, system="flag") == "flag"
    assert system_of(row | {"system": "row"}, system="flag") == "row"
    assert system_of(row | {"system": None}, system="flag") == "flag"
    assert system_of(row, system="") == ""


def test_a_system_prompt_without_a_slot_is_an_error(tokenizer):
    with pytest.raises(UsageError, match="'default-generation' has no slot for a system prompt"):
        get_template("default-generation", tokenizer, system="x")
    with pytest.raises(TemplateError, match="no slot for a system prompt"):
        get_template("default-generation", tokenizer).encode({"query": "a", "response": "b", "system": "x"})


def test_one_turn_templates_refuse_more(tokenizer):
    with pytest.raises(TemplateError, match="one question and one response"):
        get_template("default-generation", tokenizer).encode(CHAT)


def test_tools_need_a_format(tokenizer):
    row = {"query": "a", "response": "b", "tools": '[{"name": "f"}]'}
    with pytest.raises(TemplateError, match="no tool format"):
        get_template("yi", tokenizer).encode(row)


def test_a_missing_special_token_is_named(tiny_tokenizer):
    with pytest.raises(TemplateError, match="bos_token_id"):
        get_template("llama", tiny_tokenizer).encode(CHAT)


def test_unknown_template_names_the_nearest(tiny_tokenizer):
    with pytest.raises(UnknownKeyError, match=r"Did you mean .*'chatml'"):
        get_template("chatlm", tiny_tokenizer)


def test_where_a_stop_is_not_written_each_answer_is_a_sample(tokenizer):
    template = get_template("default", tokenizer)
    assert split_chat_sep(template.info)[0] == ()
    samples = template.encode_all(CHAT)
    assert [learned_texts(template, sample) for sample in samples] == [["first<|im_end|>"], ["second<|im_end|>"]]
    assert template.encode(CHAT) == samples[-1]
    assert len(template.encode_all(HISTORY)) == 1


def test_a_token_across_an_answers_start_is_split_there(real_tokenizer):
    """`\\n\\n` is one token of Qwen2.5: after `assistant\\n` an answer that begins with a newline would merge."""
    template = get_template("qwen2.5", real_tokenizer("qwen2_5"))
    row = {"query": "a", "response": "\nb"}
    encoded, prompt = template.encode(row), template.encode(row, generation=True)["input_ids"]
    assert encoded["input_ids"][: len(prompt)] == prompt
    assert learned_texts(template, encoded) == ["\nb<|im_end|>"]
    first, second = template.encode_all({"messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "\nb"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"},
    ]})  # fmt: skip
    assert first == encoded
    assert learned_texts(template, second) == ["d<|im_end|>"]


texts = st.text(alphabet=st.sampled_from("ab \n好🙂é<|im_end|>{}"), max_size=8)


@st.composite
def rows(draw):
    turns = draw(st.lists(st.tuples(texts, texts, st.booleans()), min_size=1, max_size=3))
    messages = [
        message
        for question, answer, trainable in turns
        for message in (Message("user", question), Message("assistant", answer, loss=trainable))
    ]
    system = draw(st.one_of(st.none(), texts))
    return Conversation((*([Message("system", system)] if system is not None else []), *messages))


@pytest.mark.parametrize("key", sorted(key for key, info in TEMPLATE_MAPPING.items() if not info.from_tokenizer))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(row=rows())
def test_laws_of_every_template(key, tokenizer, row):
    """Equal lengths, honest labels, prompt first, and the same from a tokenizer without offsets."""
    fast = get_template(key, tokenizer)
    slow = get_template(key, SlowTokenizer(tokenizer))
    ours, theirs = fast.encode_rows([row])[0], slow.encode_rows([row])[0]
    assert ours == theirs
    for sample in ours.samples:
        assert len(sample.input_ids) == len(sample.labels)
        assert sample.labels[0] == IGNORE_INDEX
        assert all(label in (IGNORE_INDEX, i) for label, i in zip(sample.labels, sample.input_ids, strict=True))
        assert sample.num_trainable > 0
    if ours.samples and row.messages[-1].loss:
        prompt = fast.encode_prompts([Conversation(row.messages[:-1])])[0]
        last = ours.samples[-1]
        assert last.input_ids[: len(prompt)] == prompt
        assert all(label == IGNORE_INDEX for label in last.labels[: len(prompt)]) or not fast._one_answer_a_sample
        assert last.labels[-1] == last.input_ids[-1], "the stop token is trainable"


def test_encoding_leaves_the_tokenizer_as_it_was(tokenizer):
    before = tokenizer("a <|im_end|> b", return_offsets_mapping=True)
    get_template("chatml", tokenizer).encode({"query": "<|im_end|>", "response": "b"})
    assert tokenizer("a <|im_end|> b", return_offsets_mapping=True) == before


def test_malformed_contexts_are_refused():
    with pytest.raises(UsageError, match="QUERY"):
        TemplateInfo(prompt=["no question"])
    with pytest.raises(UsageError, match="SYSTEM"):
        TemplateInfo(prompt=["{{QUERY}}"], default_system="x")
    with pytest.raises(UsageError, match="prompt"):
        TemplateInfo(prompt="{{QUERY}}")
    with pytest.raises(UsageError, match="suffix"):
        TemplateInfo(prompt=["{{QUERY}}"], suffix=[1.5])


def row_of(row):
    return Conversation((Message("user", row["query"]), Message("assistant", row["response"], loss=True)))


@pytest.fixture(scope="module")
def prepending_tokenizer():
    """Puts a blank before each text, as SentencePiece's converted tokenizers do."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    words = ["Human: hello Assistant: hello world </s>", " hello", "hello world\n\nHuman"]
    backend.train_from_iterator(words * 20, trainers.BpeTrainer(special_tokens=["</s>"], vocab_size=300))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("answer", ["hello world", " hello", "world"])
def test_a_tokenizer_that_prepends_a_blank_does_not_before_an_answer(prepending_tokenizer, answer, slow):
    tokenizer = SlowTokenizer(prepending_tokenizer) if slow else prepending_tokenizer
    template = get_template("xverse", tokenizer)  # its prompt ends with a blank
    row = {"query": "hello", "response": answer}
    encoded, prompt = template.encode(row), template.encode(row, generation=True)["input_ids"]
    assert encoded["input_ids"][: len(prompt)] == prompt
    assert prepending_tokenizer.decode(encoded["input_ids"]) == f"Human: hello\n\nAssistant: {answer}</s>"


@pytest.fixture(scope="module")
def blank_first():
    """A tokenizer that puts a blank before each text, as Llama's does, and makes one token of two line ends."""
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["\u2581", "\n", "a", "b", "\u2581a", "\n\n"])}
    made = Tokenizer(models.BPE(words, [("\u2581", "a"), ("\n", "\n")]))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.mark.parametrize(
    ("text", "ids", "trainable"),
    [
        ("ab", [2, 3], (1, 2)),  # no blank in the middle of a text
        ("b\n\na", [3, 5, 2], (1, 3)),
        ("\nab", [0, 1, 2, 3], (2, 4)),  # what stands before it would be one token with it: as a text of its own
    ],
)
def test_a_continued_text_gets_no_blank_where_possible(blank_first, text, ids, trainable):
    from llmtune.templates.encode import TextEncoder
    from llmtune.templates.locate import TextPart

    encoder = TextEncoder(blank_first)
    (found,) = encoder._tokenize([TextPart(text, trainable=((1, len(text)),), continued=True)])
    assert list(found.ids) == ids
    assert found.trainable == [trainable]
    (alone,) = encoder._tokenize([TextPart(text)])
    assert alone.ids[0] in (0, 4), "a text of its own begins with a blank"
