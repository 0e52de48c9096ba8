"""The loss at learned positions equals the plain one, and builds no logits of a whole batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, Qwen2Config

from llmtune.models import chunked_loss as loss_module
from llmtune.models.chunked_loss import CHUNK_POSITIONS, LogitMap, supervised_cross_entropy
from llmtune.models.supervised_loss import has_sharded_weights, install_supervised_loss
from llmtune.types import IGNORE_INDEX

V, H, K = 64, 16, 2 * CHUNK_POSITIONS + 17
MAPS = [LogitMap(), LogitMap(softcap=3.0), LogitMap(scale=0.25), LogitMap(scale=2.0, softcap=5.0)]
SMALL = {
    "vocab_size": V, "hidden_size": H, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "qwen2": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "gemma2, capped logits": Gemma2Config(**SMALL, final_logit_softcapping=2.0),
    "cohere, scaled logits": CohereConfig(**SMALL, logit_scale=0.5),
    "granite, divided logits": GraniteConfig(**SMALL, logits_scaling=4.0),
}


def tensors(*, bias: bool = True, seed: int = 0) -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(K, H, generator=generator, requires_grad=True)
    head = nn.Linear(H, V, bias=bias)
    with torch.no_grad():
        head.weight.copy_(torch.randn(V, H, generator=generator))
    return hidden, head, torch.randint(0, V, (K,), generator=generator)


def gradients(hidden: torch.Tensor, head: nn.Module) -> list[torch.Tensor]:
    return [hidden.grad, *(parameter.grad for parameter in head.parameters())]  # type: ignore[misc]


@pytest.mark.parametrize("logit_map", MAPS)
@pytest.mark.parametrize("bias", [True, False])
def test_equals_plain_cross_entropy(logit_map, bias):
    hidden, head, targets = tensors(bias=bias)
    plain = functional.cross_entropy(logit_map(head(hidden)), targets, reduction="sum")
    (plain * 0.3).backward()
    expected = [value.clone() for value in gradients(hidden, head)]
    hidden.grad = None
    head.zero_grad()
    ours, _ = supervised_cross_entropy(hidden, head, targets, logit_map)
    (ours * 0.3).backward()
    torch.testing.assert_close(ours, plain)
    with torch.no_grad():
        evaluated, correct = supervised_cross_entropy(hidden, head, targets, logit_map)
    torch.testing.assert_close(evaluated, plain)
    assert correct == (head(hidden).argmax(-1) == targets).sum()
    for value, wanted in zip(gradients(hidden, head), expected, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-4, rtol=1e-4)


def test_a_head_that_is_no_plain_linear_layer():
    hidden, head, targets = tensors()
    wrapped = nn.Sequential(head)
    plain = functional.cross_entropy(head(hidden), targets, reduction="sum")
    ours, _ = supervised_cross_entropy(hidden, wrapped, targets)
    torch.testing.assert_close(ours, plain)
    expected = torch.autograd.grad(plain, [hidden, head.weight])
    for value, wanted in zip(torch.autograd.grad(ours, [hidden, head.weight]), expected, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("with_grad", [True, False])
def test_never_more_logits_than_a_chunk(monkeypatch, with_grad):
    sizes = []
    own = torch.mm
    monkeypatch.setattr(loss_module.torch, "mm", lambda a, b, **k: (sizes.append(len(a)), own(a, b, **k))[1])
    hidden, head, targets = tensors()
    with torch.set_grad_enabled(with_grad):
        total, _ = supervised_cross_entropy(hidden, head, targets)
    assert max(sizes) == CHUNK_POSITIONS
    assert sum(sizes) == K
    assert total.requires_grad == with_grad


def test_a_frozen_head_gets_no_gradient():
    hidden, head, targets = tensors()
    head.requires_grad_(False)
    supervised_cross_entropy(hidden, head, targets)[0].backward()
    assert hidden.grad is not None
    assert head.weight.grad is None


def test_nothing_to_learn_is_zero_with_a_gradient():
    hidden, head, targets = tensors()
    total, correct = supervised_cross_entropy(hidden[:0], head, targets[:0])
    total.backward()
    assert (total, correct) == (0, 0)


def test_half_precision_is_near():
    hidden, head, targets = tensors()
    plain, _ = supervised_cross_entropy(hidden, head, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, _ = supervised_cross_entropy(hidden, head, targets)
    half.backward()
    assert half.dtype is torch.float32
    assert hidden.grad.dtype is torch.float32
    assert abs(half / plain - 1) < 0.02


def test_a_loss_scaler_does_not_overflow_fp16():
    """The gradient that comes in is the scale, 65,536, over the number of learned tokens: beyond fp16 on its own."""
    hidden, head, targets = tensors(bias=False)
    hidden, head = hidden.detach().half().requires_grad_(), head.half()
    total, _ = supervised_cross_entropy(hidden, head, targets)
    (plain,) = torch.autograd.grad(total, hidden, retain_graph=True)
    (scaled,) = torch.autograd.grad(total * 70000.0, hidden)
    fits = plain.abs() * 70000 < 65000
    assert fits.any()
    torch.testing.assert_close(scaled[fits].float(), plain[fits].float() * 70000, rtol=1e-2, atol=1.0)


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, V, (3, 20), generator=generator)
    labels = ids.clone()
    labels[:, :7] = IGNORE_INDEX
    labels[1, 12:] = IGNORE_INDEX
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_models_loss_and_gradients_stay_its_own(name, capsys):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    inputs = batch()
    plain = model(**inputs).loss
    plain.backward()
    expected = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    install_supervised_loss(model)
    found = model(**inputs)
    found.loss.backward()
    torch.testing.assert_close(found.loss, plain)
    assert found.num_trainable == (inputs["labels"][:, 1:] != IGNORE_INDEX).sum()
    for parameter, wanted in expected.items():
        torch.testing.assert_close(model.get_parameter(parameter).grad, wanted, atol=1e-6, rtol=1e-4)
    assert "in its own way" not in capsys.readouterr().err
    assert model(input_ids=inputs["input_ids"]).logits.shape == (3, 20, V), "without labels its own forward"
    torch.testing.assert_close(
        model(**inputs, num_items_in_batch=torch.tensor(100)).loss * 100, plain * found.num_trainable
    )


def test_a_model_with_logits_of_its_own_keeps_its_forward(capsys):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["qwen2"])
    inputs = batch()
    own = model.forward

    def odd(*args, **kwargs):
        output = own(*args, **kwargs)
        output.logits = output.logits * 3
        return output

    model.forward = odd
    logits = odd(input_ids=inputs["input_ids"]).logits[:, :-1]
    targets = inputs["labels"][:, 1:]
    plain = functional.cross_entropy(logits.reshape(-1, V), targets.reshape(-1), ignore_index=IGNORE_INDEX)
    install_supervised_loss(model)
    assert "in its own way" in capsys.readouterr().err
    torch.testing.assert_close(model(**inputs).loss, plain)


def test_weights_that_zero3_has_divided_are_known_by_their_mark():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    assert has_sharded_weights(model) is False
    model[1].bias.ds_id = 3  # as DeepSpeed marks each parameter that it has divided
    assert has_sharded_weights(model) is True
