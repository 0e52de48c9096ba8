"""A token by one uniform number: the right distribution, never a token of probability 0, no matter what company."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmtune.inference.draws import PART, TRIED, Draw, Uniforms, draw_tokens


def expected(logits: torch.Tensor, how: Draw) -> np.ndarray:
    """The distribution, row by row in numpy."""
    rows = logits.double().numpy() / (how.temperature or 1.0)
    for row in rows:
        if how.top_k:
            row[row < np.sort(row)[::-1][min(how.top_k, len(row)) - 1]] = -np.inf
        if how.top_p < 1:
            order = np.argsort(-row)
            shares = np.exp(row[order] - row.max()) / np.exp(row - row.max()).sum()
            row[order[1:][(np.cumsum(shares) - shares)[1:] >= how.top_p]] = -np.inf
    shares = np.exp(rows - rows.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


WAYS = [
    Draw(),
    Draw(temperature=0.6),
    Draw(temperature=1.7),
    Draw(top_k=5),
    Draw(top_p=0.8),
    Draw(temperature=0.8, top_k=40, top_p=0.5),
    Draw(top_k=1),
    Draw(top_p=0.0),
]


@pytest.mark.parametrize("how", WAYS, ids=str)
@pytest.mark.parametrize("vocabulary", [3, PART, 2 * PART + 7, 3 * TRIED])
def test_the_token_of_numpys_inverse_cdf(how, vocabulary):
    torch.manual_seed(vocabulary)
    logits = torch.randn(64, vocabulary) * 2
    uniforms = torch.rand(64, dtype=torch.float64)
    ids, logps = draw_tokens(logits, uniforms, how)
    shares = expected(logits, how)
    wanted = [
        int(np.searchsorted(np.cumsum(row), u, side="right")) for row, u in zip(shares, uniforms.numpy(), strict=True)
    ]
    assert ids.tolist() == wanted
    assert np.allclose(logps, np.log(shares[np.arange(64), wanted]), atol=1e-5)


@pytest.mark.parametrize("how", [Draw(temperature=0.7), Draw(top_k=6), Draw(top_p=0.7)], ids=str)
def test_a_chi_square_of_drawn_tokens(how):
    """20,000 draws of 12 tokens; 0.999 of the distribution with up to 11 degrees of freedom is below 31.3."""
    torch.manual_seed(1)
    logits = torch.randn(1, 12)
    shares = expected(logits, how)[0]
    draw = Uniforms((3, 1, 4)).next
    uniforms = torch.tensor([draw() for _ in range(20_000)], dtype=torch.float64)
    ids, _ = draw_tokens(logits.expand(len(uniforms), -1), uniforms, how)
    counts = np.bincount(ids.numpy(), minlength=12)
    kept = shares > 0
    assert counts[~kept].sum() == 0
    wanted = shares[kept] * len(uniforms)
    assert ((counts[kept] - wanted) ** 2 / wanted).sum() < 31.3


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("allowed", [[0], [PART - 1, PART], [2 * PART + 3], [1, 2 * PART + 3]])
def test_no_token_of_probability_0_at_the_ends(uniform, allowed):
    logits = torch.full((1, 3 * PART), -torch.inf)
    logits[0, allowed] = torch.linspace(0, 1, len(allowed))
    ids, logps = draw_tokens(logits, torch.tensor([uniform], dtype=torch.float64), Draw())
    assert ids.item() == (allowed[0] if uniform == 0 else allowed[-1])
    assert logps.isfinite().all()


def test_every_border_between_tokens_falls_to_a_token_with_a_weight():
    """Weights whose sums are exact: a number on a border belongs to the token behind it."""
    logits = torch.full((1, 2 * PART), -torch.inf)
    logits[0, [3, PART + 1, PART + 9, 2 * PART - 1]] = 0.0
    uniforms = torch.tensor([0.0, 0.25, 0.5, 0.75, 0.75 - 2**-53], dtype=torch.float64)
    ids, _ = draw_tokens(logits.expand(5, -1), uniforms, Draw())
    assert ids.tolist() == [3, PART + 1, PART + 9, 2 * PART - 1, PART + 9]


def test_temperature_0_takes_the_most_likely_one():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    ids, logps = draw_tokens(logits, torch.tensor([0.99], dtype=torch.float64), Draw(temperature=0, top_k=2))
    assert ids.tolist() == [1]
    assert torch.allclose(logps.float(), logits.log_softmax(-1)[:, 1])


def test_logits_of_bf16_are_computed_in_fp32():
    logits = (torch.randn(8, 1000) * 3).bfloat16()
    uniforms = torch.rand(8, dtype=torch.float64)
    assert torch.equal(draw_tokens(logits, uniforms, Draw())[1], draw_tokens(logits.float(), uniforms, Draw())[1])


def test_nan_is_seen_in_the_logps():
    logits = torch.zeros(2, 300)
    logits[1, 5] = torch.nan
    _, logps = draw_tokens(logits, torch.tensor([0.5, 0.5], dtype=torch.float64), Draw())
    assert logps.isnan().tolist() == [False, True]


@pytest.mark.parametrize("start", [0, 1, 17])
def test_uniforms_are_numpys_from_any_place_on(start):
    wanted = np.random.default_rng([5, 0, 2]).random(30)
    draw = Uniforms((5, 0, 2), start).next
    assert [draw() for _ in range(30 - start)] == wanted[start:].tolist()
