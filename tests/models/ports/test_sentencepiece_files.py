"""Any SentencePiece file of the BPE kind: models trained here, with the options that files of 2023 have."""

from __future__ import annotations

import functools
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtune.errors import ModelError
from llmtune.models.ports.tokenizers import find_tokenizer_port, tokenizer_loader
from llmtune.models.ports.tokenizers.port import merges_of
from llmtune.models.ports.tokenizers.sentencepiece_bpe import read_model

CORPUS = [
    "the cat sat on the mat, the dog  sat",
    "你好，世界！今天天气很好",
    "aaa aaaa bb bbbb\tabab",
    "ﬁne Ａ　Ｂ １２３",
] * 8
OPTIONS: dict[str, dict[str, Any]] = {
    "as Llama's": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "as InternLM's": {
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False,
        "user_defined_symbols": ["<eoh>", "<eoa>"],
    },
    "with a frozen line break": {
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "user_defined_symbols": ["\n", "a"],
    },
    "without bytes": {
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": False,
    },
    "with NFKC": {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": False},
    "without extra blanks": {"normalization_rule_name": "identity"},
}  # fmt: skip
many = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
texts = st.one_of(
    st.text("ab cth\t\n，你好<eoh>", max_size=30),
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=20),
    st.lists(st.sampled_from(["the ", "<eoh>", "  ", "aaaa", "\n", "你好", "<eoa>", "ab"]), max_size=12).map("".join),
)


@functools.cache
def trained(name: str) -> bytes:
    written = io.BytesIO()
    options: dict[str, Any] = {"byte_fallback": True, "vocab_size": 380, "hard_vocab_limit": False} | OPTIONS[name]
    if not options["byte_fallback"]:
        options["vocab_size"] = 110
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=written, model_type="bpe", minloglevel=2, num_threads=1, **options
    )
    return written.getvalue()


@pytest.fixture(scope="module")
def ported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    @functools.cache
    def load(name: str, class_name: str = "BaiChuanTokenizer") -> Any:
        folder = tmp_path_factory.mktemp("model")
        (folder / "tokenizer.model").write_bytes(trained(name))
        config = {"tokenizer_class": class_name, "auto_map": {"AutoTokenizer": ["tokenization.Its", None]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        assert find_tokenizer_port(folder) is not None
        return tokenizer_loader(folder).from_pretrained(folder)

    return load


@pytest.mark.parametrize("name", OPTIONS)
@many
@given(text=texts)
def test_ids_equal_sentencepiece(name, ported, text):
    original = sentencepiece.SentencePieceProcessor(model_proto=trained(name))
    if name == "with NFKC":  # of a text of nothing but these the library keeps the blank before it
        text = "".join(one for one in text if unicodedata.category(one)[0] != "C")
    ids = ported(name)(text, add_special_tokens=False)["input_ids"]
    assert ids == original.encode(text)
    if not set(ids) & {0}:
        assert ported(name).decode(ids) == original.decode(ids)


def test_frozen_symbols_do_not_merge(ported):
    tokenizer = ported("with a frozen line break")
    token = tokenizer.convert_tokens_to_ids("\n")
    assert tokenizer("b\n\nb\n", add_special_tokens=False)["input_ids"].count(token) == 3


@pytest.mark.parametrize("class_name", ["BaiChuanTokenizer", "BaichuanTokenizer", "InternLMTokenizer"])
def test_defaults_of_the_classes(class_name, ported):
    tokenizer = ported("as Llama's", class_name)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, None)
    assert tokenizer("a")["input_ids"][0] == 1


def test_what_cannot_be_carried_over(tmp_path):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=written, model_type="unigram", minloglevel=2, vocab_size=40
    )
    (tmp_path / "tokenizer.model").write_bytes(written.getvalue())
    with pytest.raises(ModelError, match=r"only BPE.*--trust_remote_code true"):
        tokenizer_loader(tmp_path).from_pretrained(tmp_path)


@pytest.mark.parametrize("size", [10, 1000, 2345])
def test_a_file_that_is_cut_off(tmp_path, size):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(trained("as Llama's")[:size])
    with pytest.raises(ValueError, match="cut off"):
        read_model(file)


def test_read_model_reads_what_the_library_reads(tmp_path: Path):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(trained("as InternLM's"))
    original = sentencepiece.SentencePieceProcessor(model_proto=trained("as InternLM's"))
    model = read_model(file)
    assert [piece.text for piece in model.pieces] == [original.id_to_piece(token) for token in range(len(original))]
    assert [piece.score for piece in model.pieces] == [original.get_score(token) for token in range(len(original))]
    assert (model.is_bpe, model.byte_fallback, model.add_dummy_prefix) == (True, True, False)


def test_merges_follow_the_ranks():
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"bc": 4, b"abc": 5, b"aab": 6, b"cba": 7}
    assert merges_of(ranks) == [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"a", b"ab")]
