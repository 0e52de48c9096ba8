"""Log-probabilities of tokens equal the plain ones, gradients included, and build no logits of a whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from llmtune.models import chunked_loss as module
from llmtune.models.chunked_loss import CHUNK_POSITIONS, token_logps
from llmtune.models.supervised_loss import install_supervised_loss
from llmtune.types import IGNORE_INDEX

from .test_supervised_loss import CONFIGS, MAPS, V, batch, gradients, tensors


def plain(hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor, logit_map) -> torch.Tensor:
    return logit_map(head(hidden).float()).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


@pytest.mark.parametrize("logit_map", MAPS)
@pytest.mark.parametrize("kind", ["linear", "linear with bias", "other head"])
def test_log_probabilities_and_gradients_equal_the_plain_ones(logit_map, kind):
    hidden, linear, targets = tensors(bias=kind == "linear with bias")
    head = nn.Sequential(linear) if kind == "other head" else linear
    factors = torch.linspace(-2, 3, len(targets))  # each position its own, as responses have
    expected = plain(hidden, head, targets, logit_map)
    (expected @ factors).backward()
    wanted = [value.clone() for value in gradients(hidden, head)]
    hidden.grad = None
    head.zero_grad()
    found = token_logps(hidden, head, targets, logit_map)
    (found @ factors).backward()
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(gradients(hidden, head), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(token_logps(hidden, head, targets, logit_map), expected.detach())


def test_gradients_equal_central_differences():
    hidden, head, targets = tensors()
    hidden = hidden[:7].detach().double().requires_grad_()
    head = head.double()
    for logit_map in MAPS:

        def logps(*parts: torch.Tensor, logit_map=logit_map) -> torch.Tensor:
            return module._TokenLogps.apply(*parts, targets[:7], logit_map, True, None)

        assert torch.autograd.gradcheck(logps, (hidden, head.weight, head.bias))


@pytest.mark.parametrize("trained", [True, False])
def test_logits_of_a_chunk_alone_exist(trained, monkeypatch):
    hidden, head, targets = tensors()
    head.requires_grad_(trained)
    sizes = []
    whole = module._project

    def watched(*args: torch.Tensor) -> torch.Tensor:
        logits = whole(*args)
        sizes.append(tuple(logits.shape))
        return logits

    monkeypatch.setattr(module, "_project", watched)
    token_logps(hidden, head, targets).sum().backward()
    assert len(sizes) == (6 if trained else 3), "in backward only where the head is trained"
    assert max(rows for rows, _ in sizes) == CHUNK_POSITIONS
    assert {columns for _, columns in sizes} == {V}


def test_no_positions_give_no_log_probabilities():
    hidden, head, targets = tensors()
    for one in (head, nn.Sequential(head)):
        found = token_logps(hidden[:0], one, targets[:0])
        assert found.shape == (0,)
        found.sum().backward()


def test_bf16_under_autocast_is_within_its_rounding():
    hidden, head, targets = tensors()
    expected = plain(hidden, head, targets, MAPS[0])
    with torch.autocast("cpu", torch.bfloat16):
        found = token_logps(hidden, head, targets)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected, rtol=3e-2, atol=0.3)


@pytest.mark.parametrize("own_logits", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_gives_the_log_probability_of_each_trainable_token(name, own_logits):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    inputs = batch()
    if own_logits:  # a model whose logits are not head(decoder): all of them are made
        forward = model.forward

        def odd(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            output.logits = output.logits * 3
            return output

        model.forward = odd
    logits = model(input_ids=inputs["input_ids"]).logits[:, :-1]
    targets = inputs["labels"][:, 1:]
    trainable = targets != IGNORE_INDEX
    expected = logits[trainable].log_softmax(-1).gather(-1, targets[trainable][:, None]).squeeze(-1)
    install_supervised_loss(model)
    found = model(**inputs, token_logps=True)
    assert found.loss is None
    torch.testing.assert_close(found.token_logps, expected)
    found.token_logps.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
