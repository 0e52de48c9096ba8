"""Tokenizers without remote code: the ids of the original, its special tokens, offsets, and what is saved."""

from __future__ import annotations

import functools
import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llmtune.errors import ModelError
from llmtune.models.loading import load_causal_lm
from llmtune.models.ports.tokenizers import find_tokenizer_port, tokenizer_loader
from llmtune.models.ports.tokenizers.qwen_v1 import PICTURE_TOKENS, read_ranks

pytestmark = pytest.mark.medium  # real vocabularies

FAMILIES = ("qwen_v1", "llama2", "internlm_v1", "baichuan2", "chatglm3", "internlm2")
FILES = ("tokenizer.json", "tokenizer.model", "qwen.tiktoken", "tokenizer_config.json")
WITH_BLANK = {"llama2", "baichuan2", "chatglm3"}
"""Those that put a blank before each text."""

PIECES = [
    "  ",
    "\n",
    "\t",
    " a",
    "你好",
    "的",
    "🙂🏽",
    "é",
    "ا",
    "か",
    "'s",
    "'LL",
    "123",
    "▁",
    "\x00",
    "\u200e.",
    "----",
]
texts = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=15).map("".join),
)
many = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="session", name="load")
def _load(assets: Path) -> Callable[[str], Any]:
    @functools.cache
    def load(family: str) -> Any:
        folder = assets / "tokenizers" / family
        return tokenizer_loader(folder).from_pretrained(folder)

    return load


@pytest.fixture(scope="session")
def original(assets: Path) -> Callable[[str], Callable[[str], list[int]]]:
    """The ids that the library which a file was made for gives a text."""

    @functools.cache
    def encoder(family: str) -> Callable[[str], list[int]]:
        folder = assets / "tokenizers" / family
        if family == "qwen_v1":
            qwen = qwen_encoding(folder / "qwen.tiktoken")
            return lambda text: qwen.encode(unicodedata.normalize("NFC", text), allowed_special="all")
        return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode

    return encoder


def qwen_encoding(file: Path) -> tiktoken.Encoding:
    """As tokenization_qwen.py makes it."""
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    pattern = words + r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))]
    special = {text: 151643 + number for number, text in enumerate(names)}
    return tiktoken.Encoding("qwen", pat_str=pattern, mergeable_ranks=read_ranks(file), special_tokens=special)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("family", ["qwen_v1", "llama2", "internlm_v1"])
@many
@given(text=texts)
def test_ids_are_the_originals(family, load, original, text):
    assert ids_of(load(family), text) == original(family)(text)


@pytest.mark.parametrize(("family", "count"), [("qwen_v1", 151851), ("llama2", 31997), ("internlm_v1", 103165)])
def test_every_token_of_the_vocabulary(family, count, load, original):
    """As a text: those that no merge leads to, and those of one score, are among them."""
    tokenizer, encode = load(family), original(family)
    spelled = range(len(tokenizer)) if family == "qwen_v1" else range(3, len(tokenizer))
    found = tokenizer.backend_tokenizer.encode_batch(
        [tokenizer.decode([token]) for token in spelled], add_special_tokens=False
    )
    assert len(found) == count
    wrong = [token for token, item in zip(spelled, found, strict=True) if item.ids != encode(tokenizer.decode([token]))]
    assert wrong == []


@pytest.mark.parametrize("family", ["llama2", "internlm_v1", "qwen_v1"])
def test_runs_of_one_character(family, load, original):
    tokenizer, encode = load(family), original(family)
    for one in "aA=-_.# \n你0":
        for other in "a= \n你":
            for times in range(1, 40):
                for text in (one * times, other + one * times + other, (one + other) * times):
                    assert ids_of(tokenizer, text) == encode(text)


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_of_real_rows_equal_the_original_tokenizers(family, load, original, assets):
    tokenizer = load(family)
    rows = [
        row["instruction"] + "\n" + row["input"] + row["output"]
        for name in ("en", "zh")
        for row in json.loads((assets / f"data/alpaca_{name}_demo.json").read_text(encoding="utf-8"))
    ]
    assert len(rows) == 1999
    for row in rows:
        ids = ids_of(tokenizer, row)
        assert tokenizer.decode(ids) == (unicodedata.normalize("NFC", row) if family == "qwen_v1" else row)
        if (assets / "tokenizers" / family / "tokenizer.json").is_file():
            continue
        assert ids == original(family)(row)


@pytest.mark.parametrize("family", FAMILIES)
@many
@given(text=texts)
def test_decoding_inverts_encoding_and_offsets_match(family, load, text):
    tokenizer = load(family)
    assert tokenizer.is_fast
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    blanks = text.replace("▁", " ") if family != "qwen_v1" else unicodedata.normalize("NFC", text)
    if family not in ("baichuan2", "chatglm3") or "\x00" not in text:
        assert tokenizer.decode(found["input_ids"]) == blanks
    if unicodedata.is_normalized("NFC", text):
        check_offsets(tokenizer, text, found)


def check_offsets(tokenizer: Any, text: str, found: Any) -> None:
    """Each token stands for its characters; several may share one, of which each has a byte or the blank before it."""
    seen = 0
    for token, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
        assert start <= seen <= end
        piece = tokenizer.decode([token]).strip(" ")
        if "\ufffd" not in piece:
            assert piece in text[start:end].replace("▁", " ")
        seen = end
    assert seen == len(text)


@pytest.mark.parametrize(
    ("family", "special", "names"),
    [
        ("qwen_v1", {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|extra_204|>": 151850},
         (None, "<|endoftext|>", "<|endoftext|>", None)),
        ("llama2", {"<unk>": 0, "<s>": 1, "</s>": 2}, ("<s>", "</s>", None, "<unk>")),
        ("internlm_v1", {"<s>": 1, "</s>": 2, "<eoh>": 103027, "<eoa>": 103028, "<TOKENS_UNUSED_140>": 103167},
         ("<s>", "</s>", "</s>", "<unk>")),
        ("baichuan2", {"<s>": 1, "</s>": 2, "<reserved_106>": 195, "<reserved_107>": 196},
         ("<s>", "</s>", "<unk>", "<unk>")),
        ("chatglm3", {"[MASK]": 64789, "[gMASK]": 64790, "[sMASK]": 64791, "sop": 64792, "eop": 64793,
                      "<|system|>": 64794, "<|user|>": 64795, "<|assistant|>": 64796, "<|observation|>": 64797},
         (None, "</s>", "<unk>", "<unk>")),
        ("internlm2", {"<s>": 1, "<|plugin|>": 92538, "<|interpreter|>": 92539, "<|action_end|>": 92540,
                       "<|action_start|>": 92541, "<|im_end|>": 92542, "<|im_start|>": 92543},
         ("<s>", "</s>", "</s>", "<unk>")),
    ],
)  # fmt: skip
def test_special_tokens_are_single_ids(family, special, names, load):
    tokenizer = load(family)
    for text, token in special.items():
        assert ids_of(tokenizer, text) == [token]
        assert ids_of(tokenizer, f"a{text}\n{text}").count(token) == 2 or text in ("sop", "eop")
        assert tokenizer.added_tokens_decoder[token].special
        assert tokenizer.decode([token], skip_special_tokens=True) == ""
    assert tuple(getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "pad", "unk")) == names


def test_what_stands_around_a_text(load):
    starts = {family: load(family)("a")["input_ids"][:-1] for family in FAMILIES}
    assert starts == {
        "qwen_v1": [], "llama2": [1], "internlm_v1": [1], "baichuan2": [], "chatglm3": [64790, 64792], "internlm2": [1],
    }  # fmt: skip
    assert load("llama2")("Hello")["input_ids"] == [1, 15043]
    assert load("llama2")("</s>a")["input_ids"] == [1, 2, 263]  # a blank before each stretch, as it was in 2023
    assert load("chatglm3").chat_template
    assert load("internlm2").chat_template


def test_a_word_with_a_control_tokens_spelling(load):
    tokenizer = load("chatglm3")
    assert 64792 not in ids_of(tokenizer, "philosophy, sophisticated 你sop好")
    assert ids_of(tokenizer, "[gMASK]sop<|user|>") == [64790, 64792, 64795]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model_type", [None, "native"])
def test_what_is_saved_needs_nothing_of_ours(family, model_type, load, tmp_path):
    """In a folder of its own, and beside the config.json of the model that it is trained with."""
    tokenizer = load(family)
    tokenizer.save_pretrained(tmp_path)
    if model_type:
        native = {"qwen_v1": "qwen2", "chatglm3": "glm"}.get(family, "llama")
        (tmp_path / "config.json").write_text(json.dumps({"model_type": native, "transformers_version": "5.17.0"}))
    assert "auto_map" not in (tmp_path / "tokenizer_config.json").read_text()
    saved = AutoTokenizer.from_pretrained(str(tmp_path), trust_remote_code=False)
    pieces = ["".join(PIECES), "", " a", *tokenizer.decode(range(100, 50000, 97)).split("\n")]
    pieces += [f"a{token.content} b\n" for token in tokenizer.added_tokens_decoder.values()]
    for text in pieces:
        assert saved(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert ids_of(saved, text) == ids_of(tokenizer, text)
        assert saved.decode(ids_of(saved, text)) == tokenizer.decode(ids_of(tokenizer, text))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "chat_template", "padding_side", "model_max_length"):
        assert getattr(saved, name) == getattr(tokenizer, name)
    assert find_tokenizer_port(tmp_path) is None


def copy(assets: Path, family: str, target: Path, **config: Any) -> Path:
    """A folder with the files of a family and other values in its configuration."""
    folder = assets / "tokenizers" / family
    for name in FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    read = json.loads((target / "tokenizer_config.json").read_text()) if (folder / FILES[-1]).is_file() else {}
    (target / "tokenizer_config.json").write_text(json.dumps(read | config))
    return target


def test_qwen_vl_has_its_image_tokens(assets, tmp_path):
    folder = copy(assets, "qwen_v1", tmp_path)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen", "visual": {}}))
    tokenizer = tokenizer_loader(folder).from_pretrained(folder)
    assert [ids_of(tokenizer, text) for text in PICTURE_TOKENS] == [[151851 + number] for number in range(9)]
    assert ids_of(tokenizer, "<img>") == [151857]


def test_chatglm_of_a_sentencepiece_file(assets, tmp_path, load):
    """chatglm2-6b has no tokenizer.json; Llama's file stands in for its own, which is not at hand."""
    auto_map = {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}
    folder = copy(assets, "llama2", tmp_path, tokenizer_class="ChatGLMTokenizer", auto_map=auto_map)
    tokenizer = tokenizer_loader(folder).from_pretrained(folder)
    assert tokenizer("Hello sophie")["input_ids"] == [32001, 32003, *ids_of(load("llama2"), "Hello sophie")]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.padding_side) == (0, 2, "left")


def test_loading_uses_the_port_unless_remote_code_is_trusted(assets, tmp_path):
    """load_causal_lm goes through the ports; remote code, where it is trusted, goes the old way."""
    folder = copy(assets, "qwen_v1", tmp_path)
    (folder / "config.json").write_text("{}")

    def load(**options: Any) -> Any:
        return load_causal_lm(str(folder), torch_dtype=None, model_kwargs=options, load_model=False)[1]

    assert len(load()) == 151851
    assert tokenizer_loader(folder, trust_remote_code=True) is AutoTokenizer
    with pytest.raises(ModelError, match="tokenization_qwen"):
        load(trust_remote_code=True)
    (folder / "qwen.tiktoken").write_text("IQ== 0\n")
    with pytest.raises(ModelError, match="cut off"):
        load()
    (folder / "qwen.tiktoken").unlink()
    with pytest.raises(ModelError, match="--trust_remote_code true"):
        load()


def test_a_token_that_is_not_in_the_vocabulary(assets, tmp_path):
    folder = copy(assets, "internlm_v1", tmp_path, eos_token="<|none|>")
    with pytest.raises(ModelError, match=r"eos_token is '<\|none\|>'"):
        tokenizer_loader(folder).from_pretrained(folder)


def test_a_file_of_another_kind_is_left_alone(assets, tmp_path):
    folder = copy(assets, "llama2", tmp_path, tokenizer_class="T5Tokenizer")
    assert find_tokenizer_port(folder) is None
    assert find_tokenizer_port(assets / "tokenizers" / "qwen2_5") is None
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "legacy": false}')
    assert find_tokenizer_port(folder) is None
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.model").write_text("IQ== 0\n")  # as Llama 3's
    assert find_tokenizer_port(folder) is None


def test_the_second_load_reads_the_cache(assets, monkeypatch, capsys):
    folder = assets / "tokenizers" / "qwen_v1"
    port = find_tokenizer_port(folder)
    tokenizer_loader(folder).from_pretrained(folder)
    with monkeypatch.context() as patch:
        patch.setattr("llmtune.models.ports.tokenizers.qwen_v1.read_ranks", None)
        assert port is not None
        assert len(tokenizer_loader(folder).from_pretrained(folder)) == 151851
    from llmtune.models.ports.tokenizers.load import _tokenizer_file
    from llmtune.models.ports.tokenizers.port import Source

    file = _tokenizer_file(port, Source(folder))
    raw = file.read_bytes()
    for damaged in (raw[: len(raw) // 2], b"", bytes(len(raw)), b"null"):
        file.write_bytes(damaged)
        assert len(tokenizer_loader(folder).from_pretrained(folder)) == 151851
        assert file.read_bytes() == raw
        assert "in the cache is damaged; it is made anew" in capsys.readouterr().err
