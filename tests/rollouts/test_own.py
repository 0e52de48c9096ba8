"""The trained model as its own engine of rollouts."""

from __future__ import annotations

import pytest
import torch

from llmtune import InferArguments
from llmtune.inference.load import load_engine
from llmtune.rollouts.engine import Rollout, RolloutRequest
from llmtune.rollouts.own import OwnEngine

PROMPT = (5, 6, 7, 8)


@pytest.fixture(scope="module")
def engine():
    return load_engine(InferArguments(model_type="llmtune-tiny", eval_human=True))


def requests(count: int = 4) -> list[RolloutRequest]:
    return [RolloutRequest(PROMPT, (1, 2, place), 10) for place in range(count)]


def test_rollouts_are_in_order_and_depend_on_their_seeds_alone(engine):
    own = OwnEngine(lambda: engine.model, engine.template)
    found = own.sample(requests())
    assert all(isinstance(one, Rollout) and len(one.logps) == len(one.ids) for one in found)
    assert len({tuple(one.ids) for one in found}) == len(found)
    assert [one.ids for one in own.sample(requests()[::-1])] == [one.ids for one in found[::-1]]
    one_by_one = OwnEngine(lambda: engine.model, engine.template, max_rows=1)
    assert [one.ids for one in one_by_one.sample(requests())] == [one.ids for one in found]
    assert own.is_exact


def test_each_module_keeps_its_mode(engine):
    model = engine.model
    model.train()
    model.model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    seen = []
    handle = model.register_forward_pre_hook(lambda *_: seen.append(model.training or torch.is_grad_enabled()))
    try:
        OwnEngine(lambda: model, engine.template).sample(requests(1))
        assert {name: module.training for name, module in model.named_modules()} == before
        assert set(seen) == {False}
        assert torch.is_grad_enabled()
    finally:
        handle.remove()
        model.eval()


def test_the_mode_comes_back_after_an_error(engine):
    model = engine.model.train()
    own = OwnEngine(lambda: model, engine.template)
    with pytest.raises(ValueError, match="str"):
        own.sample([RolloutRequest(("no id",), (0,), 3)])  # type: ignore[arg-type]
    assert model.training
    model.eval()


def test_an_update_of_the_weights_is_sampled_from(engine):
    own = OwnEngine(lambda: engine.model, engine.template, temperature=0)
    (before,) = own.sample(requests(1))
    bias = torch.zeros(engine.model.config.vocab_size)
    bias[42] = 1e4
    handle = engine.model.lm_head.register_forward_hook(lambda _, __, logits: logits + bias)
    try:
        own.update(1)
        assert own.sample(requests(1))[0].ids == [42] * 10 != before.ids
    finally:
        handle.remove()
    own.close()


def test_training_goes_on_after_a_sample(engine):
    """Nothing that inference made, an inference tensor, reaches the backward pass; autocast keeps no weights of it."""
    model = engine.model.train()
    own = OwnEngine(lambda: model, engine.template, autocast_dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own.sample(requests(2))
        logits = model(torch.tensor([PROMPT])).logits
    logits.float().log_softmax(-1)[0, :, 5].sum().backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
    model.zero_grad()
    model.eval()
