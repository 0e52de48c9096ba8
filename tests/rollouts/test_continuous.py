"""transformers' continuous batching as an engine of rollouts: the choices of our own loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmtune import InferArguments
from llmtune.errors import ModelError
from llmtune.inference.load import load_engine
from llmtune.rollouts.continuous import ContinuousEngine
from llmtune.rollouts.engine import RolloutRequest
from llmtune.rollouts.own import OwnEngine

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def engine():
    return load_engine(InferArguments(model_type="llmtune-tiny", eval_human=True))


def requests() -> list[RolloutRequest]:
    chosen = np.random.default_rng(0)
    prompts = [tuple(chosen.integers(3, 2000, size=size).tolist()) for size in (4, 30, 300)]
    return [RolloutRequest(prompt, (place, member), 4 + 9 * member, member) for place, prompt in enumerate(prompts)
            for member in range(3)]  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 50, "top_p": 0.9}, {"temperature": 0}], ids=str)
@pytest.mark.parametrize("max_rows", [2, 16])
def test_the_rollouts_of_our_own_loop(engine, settings, max_rows):
    own = OwnEngine(lambda: engine.model, engine.template, **settings).sample(requests())
    found = ContinuousEngine(lambda: engine.model, engine.template, max_rows=max_rows, **settings).sample(requests())
    assert [(one.ids, one.finish_reason) for one in found] == [(one.ids, one.finish_reason) for one in own]
    for ours, theirs in zip(own, found, strict=True):
        assert np.allclose(ours.logps, theirs.logps, atol=1e-4)  # fp32, other sums


def test_an_update_reaches_prompts_that_were_seen_before(engine):
    """Keys and values of former weights would be found by the prompt's ids."""
    continuous = ContinuousEngine(lambda: engine.model, engine.template)
    continuous.sample(requests())
    weight = engine.model.model.layers[0].self_attn.v_proj.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(-3)
        continuous.update(1)
        found = continuous.sample(requests())
        own = OwnEngine(lambda: engine.model, engine.template).sample(requests())
    finally:
        weight.data.copy_(kept)
    assert [one.ids for one in found] == [one.ids for one in own]


def test_the_model_is_left_as_it_was(engine):
    engine.model.train()
    attention = engine.model.config._attn_implementation
    ContinuousEngine(lambda: engine.model, engine.template).sample(requests()[:2])
    assert engine.model.training
    assert engine.model.config._attn_implementation == attention
    engine.model.eval()


def test_a_diverged_model_is_an_error(engine):
    handle = engine.model.lm_head.register_forward_hook(lambda _, __, logits: logits * torch.nan)
    try:
        with pytest.raises(ModelError, match="NaN"):
            ContinuousEngine(lambda: engine.model, engine.template).sample(requests()[:2])
    finally:
        handle.remove()


def test_no_requests(engine):
    assert ContinuousEngine(lambda: engine.model, engine.template).sample([]) == []
