"""Every key of LOSS_MAPPING: its paper's formula, its gradient, its value where policy and reference agree."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from llmtune.losses.info import LOSS_MAPPING, OPTION_NAMES, register_loss
from llmtune.losses.terms import Options, Responses, Terms
from llmtune.registry import resolve_reference

from .test_policy import policy

PAIRS = [key for key, info in LOSS_MAPPING.items() if info.over == "pairs"]
LABELS = [key for key, info in LOSS_MAPPING.items() if info.over == "labels"]
OPTIONS = Options(beta=0.3, label_smoothing=0.1, gamma=0.4, alpha=0.7, tau=0.2, desirable_weight=1.5, centring=0.01)
CHOSEN = Responses(torch.tensor([-20.0, -3.0, -7.5]), torch.tensor([10, 4, 3]), torch.tensor([-22.0, -2.5, -7.5]))
REJECTED = Responses(torch.tensor([-25.0, -2.0, -9.0]), torch.tensor([12, 4, 9]), torch.tensor([-21.0, -2.0, -9.5]))


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def likelihood(p: float, o: Options) -> float:
    return -o.alpha * p


# (c, r: log-ratios; p, q: log-probabilities; n, m: tokens) -> the loss of the pair, and its part that is per token
Formula = Callable[[float, float, float, float, int, int, Options], tuple[float, float]]
FORMULAS: dict[str, Formula] = {
    "sigmoid": lambda c, r, p, q, n, m, o: (
        -(1 - o.label_smoothing) * math.log(s(o.beta * (c - r))) - o.label_smoothing * math.log(s(-o.beta * (c - r))),
        0,
    ),
    "robust": lambda c, r, p, q, n, m, o: (
        (-(1 - o.label_smoothing) * math.log(s(o.beta * (c - r))) + o.label_smoothing * math.log(s(-o.beta * (c - r))))
        / (1 - 2 * o.label_smoothing),
        0,
    ),
    "hinge": lambda c, r, p, q, n, m, o: (max(0.0, 1 - o.beta * (c - r)), 0),
    "ipo": lambda c, r, p, q, n, m, o: ((c / n - r / m - 1 / (2 * o.beta)) ** 2, 0),
    "sigmoid_norm": lambda c, r, p, q, n, m, o: (-math.log(s(o.beta * (c / n - r / m))), 0),
    "exo_pair": lambda c, r, p, q, n, m, o: (
        s(o.beta * (c - r)) * math.log(s(o.beta * (c - r)) / (1 - o.label_smoothing))
        + s(o.beta * (r - c)) * math.log(s(o.beta * (r - c)) / o.label_smoothing),
        0,
    ),
    "nca_pair": lambda c, r, p, q, n, m, o: (
        -math.log(s(o.beta * c)) - 0.5 * math.log(s(-o.beta * c)) - 0.5 * math.log(s(-o.beta * r)),
        0,
    ),
    "sppo_hard": lambda c, r, p, q, n, m, o: ((c - 0.5 / o.beta) ** 2 + (r + 0.5 / o.beta) ** 2, 0),
    "apo_zero": lambda c, r, p, q, n, m, o: (1 - s(o.beta * c) + s(o.beta * r), 0),
    "apo_down": lambda c, r, p, q, n, m, o: (s(o.beta * c) + 1 - s(o.beta * (c - r)), 0),
    "discopop": lambda c, r, p, q, n, m, o: (
        -(1 - s(o.beta * (c - r) / o.tau)) * math.log(s(o.beta * (c - r)))
        + s(o.beta * (c - r) / o.tau) * math.exp(-o.beta * (c - r)),
        0,
    ),
    "sft": lambda c, r, p, q, n, m, o: (0.0, -p),
    "cpo": lambda c, r, p, q, n, m, o: (FORMULAS["sigmoid"](p, q, p, q, n, m, o)[0], likelihood(p, o)),
    "simpo": lambda c, r, p, q, n, m, o: (
        -(1 - o.label_smoothing) * math.log(s(o.beta * (p / n - q / m) - o.gamma))
        - o.label_smoothing * math.log(s(o.gamma - o.beta * (p / n - q / m))),
        likelihood(p, o),
    ),
    "orpo": lambda c, r, p, q, n, m, o: (
        -o.beta
        * math.log(s(math.log(math.exp(p / n) / (1 - math.exp(p / n)) / (math.exp(q / m) / (1 - math.exp(q / m)))))),
        likelihood(p, o),
    ),
}


def function_of(key: str) -> Callable[..., Terms]:
    return resolve_reference(LOSS_MAPPING[key].function, what=key)


def double(responses: Responses) -> Responses:
    assert responses.reference is not None
    return Responses(responses.logps.double(), responses.num_tokens, responses.reference.double())


@pytest.mark.parametrize("key", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_over_pairs_equals_its_formula(key, dtype):
    chosen, rejected = (double(CHOSEN), double(REJECTED)) if dtype is torch.float64 else (CHOSEN, REJECTED)
    terms = function_of(key)(chosen, rejected, OPTIONS)
    for row in range(3):
        facts = zip(*((one.ratio[row], one.logps[row], one.num_tokens[row]) for one in (chosen, rejected)), strict=True)
        (c, r), (p, q), (n, m) = facts
        expected = FORMULAS[key](float(c), float(r), float(p), float(q), int(n), int(m), OPTIONS)
        per_token = 0.0 if terms.tokens is None else float(terms.tokens[row])
        found = (float(terms.sequences[row]), per_token)
        assert found == pytest.approx(expected, rel=1e-6 if dtype is torch.float32 else 1e-12)
    assert terms.sequences.dtype is dtype


class Noted:
    """Options that note what is read."""

    def __init__(self):
        self.names = set()

    def __getattr__(self, name):
        self.names.add(name)
        return getattr(OPTIONS, name)


@pytest.mark.parametrize("key", list(LOSS_MAPPING))
def test_a_loss_reads_the_options_that_its_entry_names(key):
    options, info, scores = Noted(), LOSS_MAPPING[key], torch.tensor([1.0, 0.5, -1.0])
    inputs = {
        "pairs": (CHOSEN, REJECTED),
        "labels": (CHOSEN, torch.tensor([True, False, True]), torch.tensor(0.1)),
        "scores": (scores, scores.flip(0), None),
        "tokens": (policy(),),
    }[info.over]
    function_of(key)(*inputs, options)
    of_stage = {"beta"} if info.kl_in_reward else set()  # the stage itself reads it
    assert options.names == set(info.reads) - of_stage


def test_the_names_of_options_are_the_fields_of_options():
    assert [field.name for field in dataclasses.fields(Options)] == list(OPTION_NAMES)


def test_every_loss_over_pairs_has_a_formula_here():
    assert set(FORMULAS) == set(PAIRS)


@pytest.mark.parametrize("key", PAIRS)
def test_gradients_over_pairs_equal_central_differences(key):
    chosen, rejected = double(CHOSEN), double(REJECTED)

    def loss(policy: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, ...]:
        terms = function_of(key)(
            Responses(policy, chosen.num_tokens, chosen.reference),
            Responses(other, rejected.num_tokens, rejected.reference),
            OPTIONS,
        )
        return (terms.sequences,) if terms.tokens is None else (terms.sequences, terms.tokens)

    inputs = (chosen.logps.clone().requires_grad_(), rejected.logps.clone().requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("key", PAIRS)
def test_a_pair_has_its_loss_whatever_stands_beside_it(key):
    """The law behind every way to cut a step into micro-batches."""
    whole = function_of(key)(CHOSEN, REJECTED, OPTIONS)

    def row(one: Responses, at: int) -> Responses:
        return Responses(*(value[at : at + 1] for value in (one.logps, one.num_tokens, one.reference)))

    for at in range(3):
        alone = function_of(key)(row(CHOSEN, at), row(REJECTED, at), OPTIONS)
        assert torch.equal(alone.sequences, whole.sequences[at : at + 1])
        if whole.tokens is not None:
            assert torch.equal(alone.tokens, whole.tokens[at : at + 1])


@pytest.mark.parametrize("key", PAIRS)
def test_far_log_probabilities_give_finite_losses_and_gradients(key):
    """Of responses of thousands of tokens, and of one that the model is certain of."""
    logps = [torch.tensor([-1e4, -1e-7, -300.0], requires_grad=True) for _ in range(2)]
    tokens, reference = torch.tensor([5000, 1, 100]), torch.tensor([-1.001e4, -0.1, -299.0])
    chosen, rejected = (Responses(one, tokens, reference.flip(0) if number else reference) for number, one in
                        enumerate(logps))  # fmt: skip
    rejected = Responses(logps[1], tokens, reference)
    terms = function_of(key)(chosen, rejected, OPTIONS)
    (terms.sequences.sum() + (0 if terms.tokens is None else terms.tokens.sum())).backward()
    assert terms.sequences.isfinite().all()
    assert logps[0].grad.isfinite().all()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sigmoid", math.log(2)), ("robust", math.log(2)), ("sigmoid_norm", math.log(2)), ("hinge", 1.0),
        ("ipo", 1 / (4 * 0.1**2)), ("apo_zero", 1.0), ("apo_down", 1.0), ("nca_pair", 2 * math.log(2)),
    ],
)  # fmt: skip
def test_the_loss_of_a_policy_that_is_its_reference(key, value):
    same = Responses(CHOSEN.logps, CHOSEN.num_tokens, CHOSEN.logps)
    other = Responses(REJECTED.logps, REJECTED.num_tokens, REJECTED.logps)
    terms = function_of(key)(same, other, Options(beta=0.1))
    assert terms.sequences.tolist() == pytest.approx([value] * 3, abs=1e-6)


@pytest.mark.parametrize("key", LABELS)
def test_labelled_responses_pull_in_their_direction(key):
    labels = torch.tensor([True, False, True])
    logps = CHOSEN.logps.double().requires_grad_()
    responses = Responses(logps, CHOSEN.num_tokens, CHOSEN.reference.double())
    kl = torch.tensor(0.25, dtype=torch.float64)
    terms = function_of(key)(responses, labels, kl, OPTIONS)
    z = 0.25 if key == "kto" else 0.0
    for row, ratio in enumerate(responses.ratio.tolist()):
        good = bool(labels[row])
        value = s(OPTIONS.beta * (ratio - z))
        assert terms.sequences[row].item() == pytest.approx(1.5 * (1 - value) if good else value, rel=1e-12)
    terms.sequences.sum().backward()
    assert (logps.grad < 0).tolist() == labels.tolist()
    assert torch.autograd.gradcheck(
        lambda one: function_of(key)(Responses(one, responses.num_tokens, responses.reference), labels, kl, OPTIONS)
        .sequences,
        (CHOSEN.logps.double().requires_grad_(),),
    )  # fmt: skip
    same = Responses(CHOSEN.logps, CHOSEN.num_tokens, CHOSEN.logps)
    assert function_of(key)(same, labels, torch.tensor(0.0), Options()).sequences.tolist() == [0.5, 0.5, 0.5]


def test_reward_pairs_have_margins_and_centred_scores():
    chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    terms = function_of("bradley_terry")(chosen, rejected, None, Options())
    assert terms.sequences.tolist() == pytest.approx([-math.log(s(0.5)), -math.log(s(-5.0))])
    terms = function_of("bradley_terry")(chosen, rejected, torch.tensor([0.2, 1.0]), OPTIONS)
    expected = [-math.log(s(0.3)) + 0.01 * 1.5**2, -math.log(s(-6.0)) + 0.01 * 1.0]
    assert terms.sequences.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("key", LOSS_MAPPING)
def test_every_entry_says_what_it_is_and_where_from(key):
    info = LOSS_MAPPING[key]
    assert info.description
    assert info.source.startswith("https://arxiv.org/abs/")
    assert Options(**info.defaults) != Options() or not info.defaults


def test_a_loss_of_ones_own_is_registered_by_decoration():
    @register_loss("likelihood", needs_reference=False)
    def likelihood_alone(chosen: Responses, rejected: Responses, options: Options) -> Terms:
        return Terms(rejected.logps - chosen.logps)

    assert function_of("likelihood") is likelihood_alone
    with pytest.raises(Exception, match="Did you mean 'sigmoid'"):
        LOSS_MAPPING["sigmoyd"]
