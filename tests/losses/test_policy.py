"""Advantages and policy losses: their formulas by hand, their gradients, and those of trl."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from llmtune.losses.advantages import Rewards, gae, group, tied_groups, whitened
from llmtune.losses.info import ADVANTAGE_MAPPING, LOSS_MAPPING
from llmtune.losses.policy import k3, value_loss
from llmtune.losses.terms import Options, PolicyTokens
from llmtune.registry import resolve_reference

OVER_TOKENS = [key for key, info in LOSS_MAPPING.items() if info.over == "tokens"]
SIZES = (3, 1, 5, 2)
RESPONSES = torch.tensor([number for number, size in enumerate(SIZES) for _ in range(size)])


def function_of(mapping: Any, key: str) -> Any:
    return resolve_reference(mapping[key].function, what=key)


def rewards(values: list[float], groups: list[int] | None = None, **more: Any) -> Rewards:
    sizes = more.pop("num_tokens", [1] * len(values))
    return Rewards(np.array(values, float), np.array(groups or [0] * len(values)), np.array(sizes), **more)


def advantages(key: str, given: Rewards) -> list[list[float]]:
    return [one.tolist() for one in function_of(ADVANTAGE_MAPPING, key)(given)]


def test_advantages_of_four_responses():
    given = rewards([1.0, 0.0, 0.0, 1.0])
    high = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    assert high == pytest.approx(0.86588, abs=1e-5)
    assert np.ravel(advantages("group", given)) == pytest.approx([high, -high, -high, high], abs=1e-12)
    assert np.ravel(advantages("group_mean", given)) == pytest.approx([0.5, -0.5, -0.5, 0.5])
    assert np.ravel(advantages("leave_one_out", given)) == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])


def test_gae_by_hand():
    given = rewards([1.0], num_tokens=[3], critic=[np.array([0.5, 0.6, 0.7])])
    (found,) = gae(given)
    assert found == pytest.approx([0.46575, 0.385, 0.3])
    assert found + given.critic[0] == pytest.approx([0.96575, 0.985, 1.0])


def test_kl_is_part_of_the_reward_of_each_token():
    given = rewards([1.0, 0.0], num_tokens=[2, 2], kl=[np.array([0.1, 0.3]), np.array([0.0, -0.2])], beta=0.5)
    assert given.whole() == pytest.approx([0.8, 0.1])
    assert [one.tolist() for one in given.by_token()] == [
        pytest.approx([-0.05, 0.85]),
        pytest.approx([0.0, 0.1]),
    ]
    rests = whitened([np.array([0.8, 0.85]), np.array([0.1, 0.1])])
    assert np.concatenate(advantages("batch", given)) == pytest.approx(np.concatenate(rests))


RELATIVE = [key for key, info in ADVANTAGE_MAPPING.items() if info.relative]


@pytest.mark.parametrize("key", RELATIVE)
def test_a_tie_has_advantage_exactly_0(key):
    given = rewards([0.1 + 0.2, 0.3, 0.3, 1.0, 0.0, 0.5], [0, 0, 0, 1, 1, 1])  # 0.1 + 0.2 > 0.3, by rounding
    found = advantages(key, given)
    assert found[:3] == [[0.0], [0.0], [0.0]]
    assert all(one != [0.0] for one in found[3:5])
    assert tied_groups(given) == [0]


@pytest.mark.parametrize("key", ADVANTAGE_MAPPING)
def test_each_advantage_has_a_number_for_each_token(key):
    sizes = [3, 1, 2, 4]
    critic = [np.zeros(size) for size in sizes]
    given = rewards([1.0, 0.0, 0.5, 0.25], [0, 0, 1, 1], num_tokens=sizes, critic=critic)
    found = function_of(ADVANTAGE_MAPPING, key)(given)
    assert [len(one) for one in found] == sizes
    assert all(np.isfinite(one).all() for one in found)
    info = ADVANTAGE_MAPPING[key]
    assert info.description
    assert info.source


def policy(seed: int = 0, *, dtype: torch.dtype = torch.float64, reference: bool = True) -> PolicyTokens:
    generator = torch.Generator().manual_seed(seed)

    def drawn(scale: float) -> torch.Tensor:
        return scale * torch.randn(sum(SIZES), generator=generator, dtype=dtype)

    old = -drawn(1.0).abs() - 0.1
    by_response = torch.tensor([0.9, -1.2, 0.4, -0.1], dtype=dtype)
    return PolicyTokens(
        (old + drawn(0.3)).requires_grad_(),
        old,
        by_response[RESPONSES],
        RESPONSES,
        torch.tensor(SIZES),
        old + drawn(0.2) if reference else None,
    )


def value(key: str, given: PolicyTokens, options: Options) -> torch.Tensor:
    terms = function_of(LOSS_MAPPING, key)(given, options)
    if terms.sequences is not None:
        assert terms.tokens is None
        return terms.sequences.sum() / len(SIZES)
    return terms.tokens.sum() / sum(SIZES)


@pytest.mark.parametrize("key", OVER_TOKENS)
def test_gradients_equal_central_differences(key):
    given = policy()
    options = Options(beta=0.1, epsilon=0.2, epsilon_high=0.3)

    def loss(logps: torch.Tensor) -> torch.Tensor:
        if key == "cispo":  # its weight has no gradient
            held = PolicyTokens(given.logps.detach(), *(getattr(given, name) for name in NAMES))
            weights = held.ratio.clamp(max=options.epsilon_high)
            plain = -weights * given.advantages * logps
            return (plain + options.beta * k3(logps, given.reference)).sum() / sum(SIZES)
        return value(key, PolicyTokens(logps, *(getattr(given, name) for name in NAMES)), options)

    (found,) = torch.autograd.grad(value(key, given, options), given.logps)
    step = 1e-6
    for place in range(sum(SIZES)):
        moved = torch.zeros(sum(SIZES), dtype=torch.float64)
        moved[place] = step
        base = given.logps.detach()
        expected = (loss(base + moved) - loss(base - moved)) / (2 * step)
        assert found[place] == pytest.approx(float(expected), abs=1e-8)


NAMES = ("old", "advantages", "responses", "num_tokens", "reference", "correction")
TRL = {
    "grpo": {"loss_type": "grpo"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
}


@pytest.mark.medium
@pytest.mark.parametrize("beta", [0.0, 0.07])
@pytest.mark.parametrize("key", TRL)
def test_losses_equal_those_of_trl(key, beta):
    from trl.trainer.grpo_trainer import GRPOTrainer

    given = policy(reference=beta > 0, dtype=torch.float32)
    settings = {"epsilon": 0.2, "epsilon_high": None, "importance_sampling_level": "token"} | TRL[key]
    high = settings["epsilon"] if settings["epsilon_high"] is None else settings["epsilon_high"]
    trainer, inputs = oracle(given, beta=beta, high=high, **settings)
    expected = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    defaults = {name: one for name, one in LOSS_MAPPING[key].defaults.items() if name != "beta"}
    found = value(key, given, Options(**defaults, beta=beta, max_tokens=16))
    assert float(found.detach()) == pytest.approx(float(expected), abs=1e-6)


def padded(values: torch.Tensor) -> torch.Tensor:
    rows = torch.zeros(len(SIZES), max(SIZES), dtype=values.dtype)
    for number, size in enumerate(SIZES):
        rows[number, :size] = values[number == RESPONSES]
    return rows


class _Metrics(dict[str, Any]):
    def __missing__(self, key: str) -> Any:
        self[key] = [] if key != "train" else _Metrics()
        return self[key]


def oracle(given: PolicyTokens, *, beta: float, high: float, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """trl's trainer as far as its loss reads it, with our log-probabilities in place of a model's."""
    logps = padded(given.logps.detach())
    mask = padded(torch.ones(sum(SIZES), dtype=torch.long))
    accelerator = SimpleNamespace(
        gather=lambda one: one, num_processes=1, reduce=lambda one, reduction="sum": one, device="cpu"
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros_like(logps), None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        beta=beta,
        epsilon_low=settings["epsilon"],
        epsilon_high=high,
        loss_type=settings["loss_type"],
        importance_sampling_level=settings["importance_sampling_level"],
        max_completion_length=16,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics=_Metrics(),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        num_iterations=1,
        tools=None,
    )
    zeros = torch.zeros(len(SIZES), 1, dtype=torch.long)
    inputs = {
        "prompt_ids": zeros,
        "prompt_mask": zeros,
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": torch.tensor([float(given.advantages[one == RESPONSES][0]) for one in range(len(SIZES))]),
        "old_per_token_logps": padded(given.old),
        "num_items_in_batch": mask.sum(),
    }
    if given.reference is not None:
        inputs["ref_per_token_logps"] = padded(given.reference)
    return trainer, inputs


@pytest.mark.medium
def test_rloo_equals_that_of_trl():
    from trl.trainer.rloo_trainer import RLOOTrainer

    given = policy(reference=False, dtype=torch.float32)
    trainer, inputs = oracle(given, beta=0.0, high=0.2, epsilon=0.2, loss_type="", importance_sampling_level="")
    inputs["old_logps"] = padded(given.old).sum(1)
    expected = RLOOTrainer._compute_loss(trainer, trainer.model, inputs)
    found = value("rloo", given, Options(epsilon=0.2))
    assert float(found.detach()) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("key", OVER_TOKENS)
def test_nothing_moves_without_advantages(key):
    given = policy(reference=False)
    still = PolicyTokens(given.logps, given.old, torch.zeros_like(given.old), given.responses, given.num_tokens, None)
    loss = value(key, still, Options())
    assert float(loss.detach()) == 0
    (gradient,) = torch.autograd.grad(loss, given.logps)
    assert not gradient.any()


@pytest.mark.parametrize("key", OVER_TOKENS)
def test_a_correction_of_1_changes_nothing(key):
    given = policy()
    corrected = PolicyTokens(
        given.logps, *(getattr(given, name) for name in NAMES[:-1]), correction=torch.ones_like(given.old)
    )
    assert torch.equal(value(key, given, Options()), value(key, corrected, Options()))
    halved = PolicyTokens(
        given.logps, *(getattr(given, name) for name in NAMES[:4]), None, torch.full_like(given.old, 0.5)
    )
    plain = PolicyTokens(given.logps, *(getattr(given, name) for name in NAMES[:4]), None, None)
    assert float(value(key, halved, Options())) == pytest.approx(0.5 * float(value(key, plain, Options())))


def test_k3_is_never_negative_and_0_at_the_reference():
    logps = torch.linspace(-3, 0, 7)
    assert not k3(logps, logps).any()
    assert (k3(logps, logps + 0.3) > 0).all()


def test_the_value_loss_takes_the_larger_of_both():
    values, old, returns = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]), torch.tensor([2.0, 0.1])
    losses, clipped = value_loss(values, old, returns, 0.2)
    assert losses.tolist() == pytest.approx([1.62, 0.005])
    assert clipped.tolist() == [True, False]


def test_group_advantages_equal_those_of_numpy():
    values = np.random.default_rng(0).random(12)
    found = np.concatenate(group(rewards(values.tolist(), [0] * 4 + [1] * 4 + [2] * 4)))
    folded = values.reshape(3, 4)
    expected = (folded - folded.mean(1, keepdims=True)) / (folded.std(1, ddof=1, keepdims=True) + 1e-4)
    assert found == pytest.approx(expected.ravel(), abs=1e-12)
