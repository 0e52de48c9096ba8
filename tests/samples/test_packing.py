"""Packing: the plan, batches, and that rows of a pack never see each other in any class of the catalogue."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from llmtune.errors import ModelError
from llmtune.models.packed_attention import check_isolation
from llmtune.models.ports.modeling_llama_alibi import LlamaAlibiConfig, LlamaAlibiForCausalLM
from llmtune.models.supervised_loss import install_supervised_loss
from llmtune.samples.collate import PackingCollator, PaddingCollator
from llmtune.samples.packing import join_rows, plan_packs
from llmtune.training.throughput import Throughput

from ..models.test_catalogue import CLASSES, NATIVE, OTHERS, PORTED, RENAMED, SMALL, VISION
from ..traced import traced_peak

# The plan


def packs_of(lengths: list[int], capacity: int, *, best: bool) -> list[int]:
    """The pack of each row, by the definition of best fit decreasing, or of first fit decreasing.

    Of the fullest packs with room, the one that was filled last.
    """
    rooms: list[int] = []
    filled_at: dict[int, int] = {}
    pack_of = [0] * len(lengths)
    for step, row in enumerate(sorted(range(len(lengths)), key=lambda row: -lengths[row])):
        fits = [pack for pack, room in enumerate(rooms) if room >= lengths[row]]
        if not fits:
            fits = [len(rooms)]
            rooms.append(capacity)
        pack = min(fits, key=lambda pack: (rooms[pack], -filled_at[pack])) if best and len(fits) > 1 else fits[0]
        rooms[pack] -= lengths[row]
        filled_at[pack], pack_of[row] = step, pack
    return pack_of


@given(st.integers(4, 40).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n), max_size=60))))
def test_the_plan(case):
    capacity, lengths = case
    pack_of = plan_packs(lengths, capacity)
    assert len(pack_of) == len(lengths), "every row is in one pack"
    num_packs = int(pack_of.max(initial=-1)) + 1
    assert set(pack_of.tolist()) == set(range(num_packs)), "and no pack is empty"
    filled = np.bincount(pack_of, weights=lengths, minlength=num_packs) if lengths else np.zeros(0)
    assert (filled <= capacity).all()
    assert pack_of.tolist() == packs_of(lengths, capacity, best=True), "of every version: a resumed run makes them anew"
    first_fit = max(packs_of(lengths, capacity, best=False), default=-1) + 1
    assert num_packs <= 11 / 9 * first_fit + 4, "the bound of first fit decreasing"
    assert (plan_packs(np.array(lengths, np.int64), capacity) == pack_of).all(), "the same lengths, the same plan"


def test_the_plan_of_a_chat_corpus_is_full():
    lengths = np.exp(np.random.default_rng(0).normal(5.5, 1, 20_000)).astype(int).clip(2, 2048)
    packs = plan_packs(lengths, 2048).max() + 1
    assert lengths.sum() / (packs * 2048) > 0.998


def test_a_row_that_does_not_fit():
    for size in (9, 0):
        with pytest.raises(ValueError, match=f"{size} tokens does not fit"):
            plan_packs([3, size], 8)


def test_the_plan_of_many_rows_takes_few_bytes_of_each():
    lengths = np.exp(np.random.default_rng(0).normal(5.5, 1, 500_000)).astype(np.int64).clip(2, 2048)
    assert traced_peak(lambda: plan_packs(lengths, 2048)) / len(lengths) < 40


# Batches

ROWS = [{"input_ids": np.arange(3, 3 + n), "labels": np.arange(3, 3 + n)} for n in (2, 3, 4)]


def test_rows_behind_one_another():
    found = join_rows(ROWS)
    assert found["input_ids"].tolist() == [3, 4, 3, 4, 5, 3, 4, 5, 6]
    assert found["position_ids"].tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 3]
    assert found["labels"].tolist() == [-100, 4, -100, 4, 5, -100, 4, 5, 6], "no row starts as another's next token"
    assert ROWS[0]["labels"].tolist() == [3, 4], "the rows are left as they were"
    again = join_rows([found, ROWS[0]])
    assert again["position_ids"].tolist() == [*found["position_ids"], 0, 1]


def test_batches_of_packs():
    packs = [join_rows(ROWS[:2]), join_rows(ROWS[2:])]
    batch = PackingCollator(0)(packs)
    assert set(batch) == {"input_ids", "position_ids", "labels"}, "an attention_mask would let rows see each other"
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 0]]
    assert batch["labels"][1].tolist() == [-100, 4, 5, 6, -100]
    flat = PackingCollator(0, flat=True)(ROWS)
    assert flat["input_ids"].shape == (1, 9)
    throughput = Throughput()
    throughput.count(batch)
    throughput.count(flat)
    assert (throughput.useful, throughput.computed, throughput.trainable) == (18, 19, 12)


# Every class of the catalogue

REFUSED = {
    "BloomForCausalLM": "makes its mask without position_ids, and takes no mask of four dimensions",
    "GptOssForCausalLM": "makes its masks without position_ids",
}
TESTED = sorted({architecture for architecture, _ in NATIVE} | {*RENAMED, "LlamaAlibiForCausalLM"})
PORTED_ONTO = {"Qwen2ForCausalLM", "LlamaForCausalLM", "GlmForCausalLM", "LlamaAlibiForCausalLM"}


def small(architecture: str) -> Any:
    torch.manual_seed(0)
    values = SMALL | OTHERS.get(architecture, {}) | {"initializer_range": 0.2}
    if architecture == "LlamaAlibiForCausalLM":
        return LlamaAlibiForCausalLM(LlamaAlibiConfig(**values))
    if "ConditionalGeneration" in architecture:
        values = {"text_config": values, "vision_config": VISION, "mm_tokens_per_image": 4}
    if architecture in RENAMED:
        config = AutoConfig.for_model(RENAMED[architecture], **values)
    else:
        config = getattr(transformers, architecture).config_class(**values)
    model = AutoModelForCausalLM.from_config(config)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def samples(*lengths: int) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    rows = [generator.integers(3, 500, length) for length in lengths]
    return [{"input_ids": row, "labels": np.where(np.arange(len(row)) % 3 == 1, -100, row)} for row in rows]


def loss_and_gradients(model: Any, *batches: dict[str, torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Of one optimizer step: the mean over the learned tokens of all batches."""
    model.zero_grad()
    learned = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    losses = [model(**batch, num_items_in_batch=learned).loss for batch in batches]
    torch.stack(losses).sum().backward()
    gradients = [value.grad.flatten() for value in model.parameters() if value.grad is not None]
    return sum(float(loss.detach()) for loss in losses), torch.cat(gradients)


@pytest.mark.parametrize("architecture", TESTED)
def test_packed_equals_unpacked(architecture):
    model = small(architecture).train()
    if architecture in REFUSED:
        with pytest.raises(ModelError, match=rf"{architecture} does not separate packed sequences.*--packing false"):
            check_isolation(model, "--packing")
        return
    check_isolation(model, "--packing")
    assert model.training
    install_supervised_loss(model)
    rows = samples(9, 5, 13, 7, 11)
    loss, gradients = loss_and_gradients(model, *(PaddingCollator(0)([row]) for row in rows))
    packs = [join_rows(rows[:3]), join_rows(rows[3:])]
    scale = gradients.abs().max()
    for name, batch in {
        "packs": PackingCollator(0)(packs),
        "one sequence": PackingCollator(0, flat=True)(packs),
        "padding_free": PackingCollator(0, flat=True)(rows),
    }.items():
        found, found_gradients = loss_and_gradients(model, batch)
        assert found == pytest.approx(loss, rel=1e-5), name
        assert (found_gradients - gradients).abs().max() < 1e-5 * scale, name
    with torch.no_grad():  # and the test can fail: with a mask, or with a cache, the rows see each other
        batch = PackingCollator(0)(packs[:1])
        right = model(**batch).loss
        assert abs(model(**batch, attention_mask=torch.ones_like(batch["labels"])).loss - right) > 1e-3


def test_every_class_of_the_catalogue_is_tested():
    assert {architecture for architecture, _ in CLASSES} - set(PORTED) <= set(TESTED)
    assert set(TESTED) >= PORTED_ONTO, "and the classes that the ported ones are loaded onto"


@pytest.mark.parametrize(("architecture", "fits"), [("LlamaForCausalLM", True), ("GptOssForCausalLM", False)])
def test_the_check_in_bf16(architecture, fits):
    model = small(architecture).to(torch.bfloat16)
    if fits:
        return check_isolation(model, "--packing")
    with pytest.raises(ModelError):
        check_isolation(model, "--packing")


def test_a_class_that_takes_no_positions():
    class Own(nn.Module):
        device = torch.device("cpu")

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            return transformers.modeling_outputs.CausalLMOutput(logits=torch.ones(*input_ids.shape, 8))

    with pytest.raises(ModelError, match=r"Own does not take .*position_ids.*--padding_free false"):
        check_isolation(Own(), "--padding_free")


@pytest.mark.parametrize("rope", [{"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "longrope", "factor": 4.0}])
def test_rotations_that_depend_on_the_longest_row(rope):
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8} if rope["rope_type"] == "longrope" else {}
    values: dict[str, Any] = SMALL | {"initializer_range": 0.2, "max_position_embeddings": 16}
    rope = {"rope_theta": 10000.0, "original_max_position_embeddings": 16} | factors | rope
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values, rope_parameters=rope)).eval()
    short, long = torch.arange(3, 9)[None], torch.arange(10, 34)[None]
    positions = torch.cat([torch.arange(6), torch.arange(24)])[None]
    packed = model(torch.cat([short, long], 1), position_ids=positions, use_cache=False).logits[:, :6]
    assert (packed - model(short).logits).abs().max() > 0.1, "why it is refused: the long row changes the short one"
    check_isolation(model, "--packing", longest=16)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM rescales RoPE .* 16 tokens.* has 17\. Use --max_length 16"):
        check_isolation(model, "--packing", longest=17)
