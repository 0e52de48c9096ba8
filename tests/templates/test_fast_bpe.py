"""The cheap way to ids: the same ids, borders and masks as the Rust tokenizer's, or not taken."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtune.templates import fast_bpe as module
from llmtune.templates.encode import MANY_TEXTS, TextEncoder
from llmtune.templates.fast_bpe import fast_bpe
from llmtune.templates.lookup import get_template
from llmtune.templates.verified_bpe import VERIFIED
from llmtune.types import Conversation, Message

from .verify_bpe import FILE, ROOT, loaded, verified, written

pytest.importorskip("tiktoken")

texts = st.text(st.characters(blacklist_categories=("Cs",)), max_size=30)
spiced = st.lists(
    st.one_of(
        texts, st.sampled_from(["<|im_end|>", "<think>", "\n\n", "  ", "e\u0301", "I'LL", "123456", "好", "👍🏽"])
    ),
    max_size=6,
).map("".join)
many = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


REAL = [pytest.param(name, marks=pytest.mark.medium) for name in ("qwen2_5", "llama3_1")]


@pytest.fixture(scope="module", params=["tiny", *REAL])
def pair(request, real_tokenizer, tiny_tokenizer):
    """A tokenizer and its fast way, made once: the check reads every token and every character."""
    tokenizer = tiny_tokenizer if request.param == "tiny" else real_tokenizer(request.param)
    return tokenizer, fast_bpe(tokenizer)


def test_real_tokenizers_have_it(pair):
    assert pair[1] is not None


@many
@given(text=spiced)
def test_fast_ids_and_ends_equal_the_tokenizers(pair, text):
    tokenizer, fast = pair
    if not fast.takes(text):
        return
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert fast.ids(text) == ids
    assert ([0, *fast.ends(ids)])[-1] == len(text.encode())


@many
@given(contents=st.lists(st.tuples(spiced, spiced), min_size=1, max_size=3))
def test_samples_are_the_same(pair, contents):
    """Text that is not NFC, control tokens spelled in contents and answers that begin inside a token included."""
    tokenizer, fast = pair
    messages = []
    for question, answer in contents:
        messages += [Message("user", question), Message("assistant", answer, loss=True)]
    row = Conversation(tuple(messages))
    plain, quick = get_template("chatml", tokenizer), get_template("chatml", tokenizer)
    quick._encoder._fast = fast
    assert quick.encode_rows([row])[0].samples == plain.encode_rows([row])[0].samples
    assert quick.encode_prompts([row]) == plain.encode_prompts([row])


def test_few_rows_do_not_wait_for_it(tiny_tokenizer):
    encoder = TextEncoder(tiny_tokenizer)
    encoder.expect(MANY_TEXTS - 1)
    assert encoder._fast is None
    encoder.expect(MANY_TEXTS)
    assert encoder._fast is not None


def spec_of(tokenizer):
    return json.loads(tokenizer.backend_tokenizer.to_str())


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec["added_tokens"][0].update(lstrip=True),
        lambda spec: spec.update(normalizer={"type": "Lowercase"}),
        lambda spec: spec.update(pre_tokenizer={"type": "Metaspace"}),
        lambda spec: spec["pre_tokenizer"]["pretokenizers"].append({"type": "Digits"}),
    ],
    ids=["lstrip", "lowercase", "metaspace", "two splits"],
)  # fmt: skip
def test_tokenizers_that_ask_for_more(real_tokenizer, change):
    spec = spec_of(real_tokenizer("qwen2_5"))
    assert module._pattern(spec) is not None
    change(spec)
    assert module._pattern(spec) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.update(dropout=0.1),
        lambda model: model.update(byte_fallback=True),
        lambda model: model["merges"].reverse(),
        lambda model: model["vocab"].pop("a"),
        lambda model: model.update(type="Unigram"),
    ],
    ids=["dropout", "byte fallback", "another order", "a byte missing", "another model"],
)
def test_models_that_are_no_ranks(tiny_tokenizer, change):
    spec = spec_of(tiny_tokenizer)
    assert module._ranks(copy.deepcopy(spec)) is not None
    change(spec["model"])
    assert module._ranks(spec) is None


def test_one_other_id_and_it_is_not_taken(tiny_tokenizer, monkeypatch):
    """A merge that the vocabulary holds and the merges do not make: tiktoken would take it."""
    from tokenizers import Tokenizer

    changed = copy.deepcopy(tiny_tokenizer)
    spec = spec_of(changed)
    spec["model"]["merges"].pop()
    changed._tokenizer = Tokenizer.from_str(json.dumps(spec))
    assert fast_bpe(changed) is None
    monkeypatch.setattr(module, "_agrees", lambda *_: pytest.fail("the verdict is kept"))
    assert fast_bpe(changed) is None


def test_without_tiktoken_transformers_encodes(tiny_tokenizer, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tiktoken", None)
    assert fast_bpe(tiny_tokenizer) is None


def test_known_tokenizers_are_not_checked(tiny_tokenizer, monkeypatch):
    key = module.verified_key(tiny_tokenizer.backend_tokenizer.to_str())
    monkeypatch.setattr(module, "_agrees", lambda *_: pytest.fail("it is listed"))
    monkeypatch.setattr(module, "VERIFIED", {key: "tiny"})
    assert fast_bpe(tiny_tokenizer) is not None


def test_unknown_tokenizers_checks_and_releases_have_keys_of_their_own(monkeypatch, tmp_path):
    def key(described: str = "a", versions: str = "0.14.0 0.23.3") -> str:
        monkeypatch.setattr(module, "_versions", lambda: versions)
        return module.verified_key(described)

    assert key() == key(versions="0.14.9 0.23.0")
    other = tmp_path / "fast_bpe.py"
    other.write_text("another check")
    keys = {key(), key("b"), key(versions="0.15.0 0.23.3"), key(versions="0.14.0 0.24.0")}
    monkeypatch.setattr(module, "__file__", str(other))
    assert len(keys | {key()}) == 5


def of_the_pinned_libraries() -> bool:
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    releases = [".".join(one.split(".")[:2]) for one in module._versions().split(" ")]
    return all(
        f"{name}=={release}." in pins for name, release in zip(("tiktoken", "tokenizers"), releases, strict=True)
    )


@pytest.mark.medium
def test_the_list_of_known_tokenizers_is_current(assets):
    """Else: python tests/templates/verify_bpe.py FOLDER, after a look at what changed."""
    if not of_the_pinned_libraries():
        pytest.skip("the list is that of the libraries in requirements.txt")
    keys = {
        module.verified_key(tokenizer.backend_tokenizer.to_str()): name
        for name, tokenizer in loaded(assets / "tokenizers", skipped=("baichuan2", "chatglm3", "internlm2"))
    }
    assert keys == VERIFIED
    assert written(VERIFIED) == FILE.read_text(encoding="utf-8")


@pytest.mark.slow
def test_known_tokenizers_pass_the_check(assets):
    found = verified(dict(loaded(assets / "tokenizers")))
    assert sorted(found.values()) == sorted(VERIFIED.values())
    if of_the_pinned_libraries():
        assert found == VERIFIED
