"""Sampled ids are those of plain passes, whatever rows are decoded with them, and however many at a time."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from llmtune import InferArguments
from llmtune.errors import ModelError
from llmtune.inference import refill
from llmtune.inference.decode import Decoder
from llmtune.inference.decode_forward import Forward, has_plain_cache
from llmtune.inference.draws import Draw
from llmtune.inference.engine import Engine
from llmtune.inference.load import load_engine
from llmtune.models.supervised_loss import install_supervised_loss
from llmtune.rollouts.engine import RolloutRequest
from llmtune.utils import logging as llmtune_logging

VOCAB = 96
STOP = 7
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.4,  # so that the distributions differ from position to position
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine(InferArguments(model_type="llmtune-tiny", eval_human=True))


class Tokenizer:
    """An id is a letter; enough for stop words."""

    pad_token_id = 0

    def decode(self, ids, **_):
        return "".join(chr(ord("0") + one) for one in ids)


def template(*stop_strings: str):
    return SimpleNamespace(
        tokenizer=Tokenizer(), stop_token_ids=[STOP], stop_strings=list(stop_strings), thought_tokens={}
    )


@pytest.fixture(scope="module")
def qwen2() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES)).eval()


def gemma2() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = Gemma2Config(**SIZES, head_dim=8, sliding_window=8, attn_implementation="eager")
    return Gemma2ForCausalLM(config).eval()


def bloom() -> BloomForCausalLM:
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.4)
    return BloomForCausalLM(config).eval()


def requests(num_prompts: int = 5, group: int = 4, *, longest: int = 25, most: int = 24) -> list[RolloutRequest]:
    """Groups of equal prompts of other lengths; two of the prompts have one length."""
    chosen = np.random.default_rng(3)
    lengths = [4, 4, *chosen.integers(1, longest, num_prompts - 2).tolist()]
    prompts = [tuple(chosen.integers(8, VOCAB, size=length).tolist()) for length in lengths]
    found = [
        RolloutRequest(prompt, (11, place, member), int(chosen.integers(1, most)), num_drawn=member % 3)
        for place, prompt in enumerate(prompts)
        for member in range(group)
    ]
    return [found[place] for place in chosen.permutation(len(found))]  # groups need not lie together


def reference(model, request: RolloutRequest, how: Draw, stops=(STOP,)) -> tuple[list[int], list[float]]:
    """One row alone: a whole pass without a cache for each token, and numpy's choice."""
    uniforms = np.random.default_rng(list(request.seed)).random(request.num_drawn + request.max_tokens)
    ids, logps = [], []
    for uniform in uniforms[request.num_drawn :]:
        with torch.inference_mode():
            logits = model(torch.tensor([[*request.prompt_ids, *ids]])).logits[0, -1].double().numpy()
        shares = np.exp((logits - logits.max()) / (how.temperature or 1))
        shares /= shares.sum()
        token = int(np.searchsorted(np.cumsum(shares), uniform, side="right"))
        token = token if how.temperature else int(logits.argmax())
        ids.append(token)
        logps.append(float(np.log(shares[token])))
        if token in stops:
            break
    return ids, logps


def run(model, wanted, how: Draw | None = None, *, its_template=None, **options):
    decoder = Decoder(model, its_template or template(), how, **options)
    with torch.inference_mode():
        return decoder.decode(wanted, quiet=True), decoder


def check(found, wanted, *, tolerance: float = 1e-4) -> None:
    """The tolerance is that of fp32 sums in another order, for logits of size 10."""
    assert [one.ids for one in found] == [ids for ids, _ in wanted]
    for one, (_, logps) in zip(found, wanted, strict=True):
        assert np.allclose(one.logps, logps, atol=tolerance)


@pytest.fixture(scope="module")
def alone(qwen2):
    found = [reference(qwen2, one, Draw()) for one in requests()]
    assert {ids[-1] == STOP for ids, _ in found} == {True, False}
    return found


@pytest.mark.parametrize("max_rows", [1, 3, 6, 64])
def test_the_ids_of_plain_passes_for_any_number_of_rows(qwen2, alone, max_rows):
    found, decoder = run(qwen2, requests(), max_rows=max_rows)
    assert decoder._is_plain
    check(found, alone)
    stopped = [one.finish_reason for one in found]
    assert stopped == ["stop" if ids[-1] == STOP else "length" for ids, _ in alone]


@pytest.mark.parametrize("prefill_tokens", [1, 30])
@pytest.mark.parametrize("free_share", [1, 2, 1000])
def test_when_rows_join_changes_no_id(qwen2, alone, monkeypatch, prefill_tokens, free_share):
    monkeypatch.setattr(refill, "PREFILL_TOKENS", prefill_tokens)
    monkeypatch.setattr(refill, "FREE_SHARE", free_share)
    check(run(qwen2, requests(), max_rows=6)[0], alone)


def test_a_group_apart_has_the_ids_it_has_in_company(qwen2, alone):
    for place in (0, 9, 17):
        check(run(qwen2, [requests()[place]])[0], [alone[place]])


def test_buffers_that_grow_and_slide(qwen2, monkeypatch):
    """Short and long rows over many blocks: columns are trimmed, and the buffers made anew."""
    monkeypatch.setattr("llmtune.inference.row_cache.BLOCK", 4)
    many = requests(7, 3, longest=40, most=60)
    check(run(qwen2, many, max_rows=5)[0], [reference(qwen2, one, Draw()) for one in many])


def test_the_embedded_model(engine):
    ids = engine.template.tokenizer("Who are you? Tell me.")["input_ids"]
    wanted = [RolloutRequest(tuple(ids[: 2 + place // 3]), (place,), 12) for place in range(9)]
    found, _ = run(engine.model, wanted, its_template=engine.template, max_rows=4)
    check(found, [reference(engine.model, one, Draw(), engine.template.stop_token_ids) for one in wanted])


@pytest.mark.parametrize("how", [Draw(temperature=0.5), Draw(temperature=0)], ids=str)
def test_temperature(qwen2, how):
    few = requests()[:6]
    check(run(qwen2, few, how, max_rows=4)[0], [reference(qwen2, one, how) for one in few])


def test_reported_logps_are_those_of_a_fresh_forward(qwen2):
    how = Draw(temperature=0.7)
    for request, one in zip(requests(), run(qwen2, requests(), how)[0], strict=True):
        ids = torch.tensor([[*request.prompt_ids, *one.ids]])
        with torch.inference_mode():
            logps = (qwen2(ids).logits[0, len(request.prompt_ids) - 1 : -1] / 0.7).log_softmax(-1)
        fresh = logps.gather(-1, torch.tensor(one.ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(one.logps), fresh, atol=1e-4)


def test_a_peft_model_in_training_with_the_supervised_loss(qwen2):
    model = copy.deepcopy(qwen2)
    install_supervised_loss(model)
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    few = requests()[:5]
    found, decoder = run(tuned.eval(), few, max_rows=3)
    assert decoder._is_plain
    check(found, [reference(tuned, one, Draw()) for one in few])
    with tuned.disable_adapter():
        assert [one.ids for one in found] != [reference(tuned, one, Draw())[0] for one in few]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_alone_and_together_under_autocast(qwen2, attention):
    """Rounding in bf16 depends on the batch, so ids do; their logps are near those of fp32: bf16 has 8 bits."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, attn_implementation=attention)).eval()
    found, decoder = run(model, requests(), max_rows=6, autocast_dtype=torch.bfloat16)
    assert decoder._is_plain
    for request, one in zip(requests(), found, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([[*request.prompt_ids, *one.ids]])).logits
        logps = logits[0, len(request.prompt_ids) - 1 : -1].log_softmax(-1)
        fresh = logps.gather(-1, torch.tensor(one.ids)[:, None])[:, 0]
        assert (torch.tensor(one.logps) - fresh).abs().mean() < 0.15


def test_a_model_in_bf16_decodes_in_its_own_dtype(qwen2):
    model = copy.deepcopy(qwen2).bfloat16()
    found, decoder = run(model, requests(), max_rows=6)
    assert decoder._is_plain
    for request, one in zip(requests(), found, strict=True):
        _, logps = reference(model, dataclasses.replace(request, max_tokens=1), Draw())
        assert abs(one.logps[0] - logps[0]) < 0.1


def stopped(ids: list[int]) -> tuple[list[int], str]:
    """Ids up to the first stop of a template with the stop word `de`, of two ids: 52 and 53."""
    text = Tokenizer().decode(ids)
    end = text.find("de")
    return (ids[: end + 2], "stop") if end >= 0 else (ids, "stop" if ids[-1] == STOP else "length")


def test_stop_words_of_several_tokens():
    """The second request ends with the word at its last token: that is a stop."""
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES)).eval()
    bias = torch.full((VOCAB,), -30.0)
    bias[[52, 53, 60, 61, 62, 63]] = 0  # equally likely ones
    model.lm_head.weight.data.zero_()
    model.lm_head.bias = torch.nn.Parameter(bias)
    many = [RolloutRequest((9, 10), (place,), 50) for place in range(6)]
    plain, _ = run(model, many)
    wanted = [stopped(one.ids) for one in plain]
    assert sum(len(ids) < len(one.ids) for (ids, _), one in zip(wanted, plain, strict=True))
    found, _ = run(model, many, its_template=template("de"), max_rows=4)
    assert [(one.ids, one.finish_reason) for one in found] == wanted
    place = next(place for place, (ids, _) in enumerate(wanted) if ids[-1] == 53)
    just = RolloutRequest((9, 10), (place,), len(wanted[place][0]))
    assert run(model, [just], its_template=template("de"))[0][0].finish_reason == "stop"
    assert run(model, [just])[0][0].finish_reason == "length"


def test_positions_by_alibi():
    model = bloom()
    found, decoder = run(model, requests(), max_rows=6)
    assert decoder._is_plain
    check(found, [reference(model, one, Draw()) for one in requests()])


class WithoutPositions(Qwen2ForCausalLM):
    """Counts positions from the first column on, padding or not."""

    def forward(self, *args, position_ids=None, **kwargs):
        return super().forward(*args, **kwargs)


def test_a_model_that_counts_padding_is_not_taken_for_one_with_a_plain_cache():
    torch.manual_seed(0)
    model = WithoutPositions(Qwen2Config(**SIZES)).eval()
    with torch.inference_mode():
        assert not has_plain_cache(Forward(model, 0))


def test_a_cache_that_is_not_plain_falls_back(capsys):
    llmtune_logging._said.clear()
    model = gemma2()
    model.generation_config.repetition_penalty = 5.0  # of its generation_config.json: no part of the distribution
    many = requests()
    wanted = [reference(model, one, Draw()) for one in many]
    for max_rows in (1, 6, 6):
        found, decoder = run(model, many, max_rows=max_rows)
        assert not decoder._is_plain
        check(found, wanted)
    assert model.generation_config.repetition_penalty == 5.0
    assert capsys.readouterr().err.count("sampled in batches of") == 2


def test_no_requests_and_no_tokens(qwen2):
    assert run(qwen2, [])[0] == []
    none = run(qwen2, [RolloutRequest((9,), (0,), 0)])[0][0]
    assert (none.ids, none.finish_reason) == ([], "length")


def test_a_diverged_model_is_an_error(qwen2):
    model = copy.deepcopy(qwen2)
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    decoder = Decoder(model, template())
    decoder._is_plain = True
    with pytest.raises(ModelError, match="NaN"), torch.inference_mode():
        decoder.decode(requests()[:1])


def test_a_prompt_is_prefilled_once_for_its_group(qwen2):
    decoder = Decoder(qwen2, template(), max_rows=3)
    decoder._is_plain = True
    prefill, seen = decoder._forward.prefill, []
    decoder._forward.prefill = lambda prompts: (seen.extend(map(tuple, prompts)), prefill(prompts))[1]
    with torch.inference_mode():
        decoder.decode(requests())
    assert sorted(seen) == sorted({one.prompt_ids for one in requests()})
