"""Choice of a token by one uniform number: what a row draws depends on its seed alone, not on its batch.

Shapes: R rows, V tokens of the vocabulary, P parts of PART tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmtune.utils.accelerator import has_float64

PART = 256
"""Tokens that are summed together: to cumulate over the whole vocabulary of every row costs more than its softmax."""

TRIED = 1024
"""Most likely tokens among which `top_p` is looked for first; sorting the whole vocabulary is slow."""

BELOW_ONE = 1 - 2**-53


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """How a token is chosen from its logits.

    Attributes:
        temperature: Divides the logits; 0 takes the most likely token.
        top_k: Draw among the k most likely tokens, and those as likely as the last of them; 0 is all.
        top_p: Of these, among the fewest that make up this share.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class Uniforms:
    """The uniform numbers of one row: those of numpy's `default_rng(seed)`, from the `start`-th on.

    Args:
        seed: Numbers of at least 0.
    """

    def __init__(self, seed: Sequence[int], start: int = 0) -> None:
        bits = np.random.PCG64(list(seed))
        bits.advance(start)  # each number takes one step of the generator
        self.next = np.random.Generator(bits).random
        """Return the next number, in [0, 1)."""


def draw_tokens(logits: Tensor, uniforms: Tensor, how: Draw) -> tuple[Tensor, Tensor]:
    """Return the tokens that the uniform numbers choose, and their log-probabilities.

    The token is the first whose cumulated probability, by token id, is above the uniform number; its own probability is
    never 0. Weights are computed in fp32, as the logits are; sums over parts are of 256 of them at most, with an error
    of the size of one weight's, and everything that is cumulated over the vocabulary is in fp64.

    Args:
        logits: [R, V], of any dtype. Not changed.
        uniforms: [R], fp64, in [0, 1). Not used at temperature 0.

    Returns:
        Ids, [R], and log-probabilities under the distribution drawn from, [R], in fp64; at temperature 0, where nothing
        is drawn, under the softmax of the logits. NaN where the logits are.
    """
    scores = logits.float()
    if not has_float64(scores.device.type):
        scores = scores.cpu()
    if how.temperature not in (0.0, 1.0):
        scores = scores / how.temperature
    if how.temperature and (how.top_k or how.top_p < 1):
        scores = _likely(scores, how)
    uniforms = uniforms.to(scores.device)
    highest = scores.amax(-1, keepdim=True)
    weights = _weights(scores, highest)
    cumulated = weights.sum(-1).double().cumsum(-1)
    total = cumulated[:, -1:]
    ids = _choose(weights, cumulated, uniforms[:, None]) if how.temperature else scores.argmax(-1, keepdim=True)
    ids = ids.clamp(max=scores.shape[-1] - 1)  # behind the vocabulary where the logits are NaN
    logps = (scores.gather(-1, ids) - highest).double() - total.log()
    return ids[:, 0], logps[:, 0]


def _weights(scores: Tensor, highest: Tensor) -> Tensor:
    """Return the unnormalised probabilities, in parts: [R, P, PART]."""
    rows, vocabulary = scores.shape
    parts = -(-vocabulary // PART)
    weights = scores.new_empty(rows, parts * PART)
    weights[:, vocabulary:] = 0
    torch.sub(scores, highest, out=weights[:, :vocabulary])
    weights[:, :vocabulary].exp_()
    return weights.view(rows, parts, PART)


def _choose(weights: Tensor, cumulated: Tensor, uniforms: Tensor) -> Tensor:
    """Return the chosen ids, [R, 1]: first the part, then, by where in it the number falls, the token."""
    part, within = _find(cumulated, uniforms)
    rows = torch.arange(len(weights), device=weights.device)
    token, _ = _find(weights[rows, part[:, 0]].double().cumsum(-1), within)
    return part * PART + token


def _find(cumulated: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first place whose cumulated weight is above its share of the total, and where in it that falls.

    [R, N], [R, 1] -> [R, 1], [R, 1]. Below the total there is always such a place, and it has a weight of its own.
    """
    total = cumulated[:, -1:]
    target = torch.minimum(uniforms * total, total * BELOW_ONE)
    place = torch.searchsorted(cumulated, target, right=True).clamp_(max=cumulated.shape[-1] - 1)
    before = torch.where(place > 0, cumulated.gather(-1, (place - 1).clamp_(min=0)), 0.0)
    share = (target - before) / (cumulated.gather(-1, place) - before)
    return place, share.clamp_(0.0, BELOW_ONE)


def _likely(scores: Tensor, how: Draw) -> Tensor:
    """Set the scores outside `top_k` and `top_p` to -inf. Equal scores share their fate: their order is by chance."""
    vocabulary = scores.shape[-1]
    size = min(how.top_k or (TRIED if how.top_p < 1 else vocabulary), vocabulary)
    values = scores.topk(size).values
    if how.top_p < 1:
        totals = values.logsumexp(-1, keepdim=True) if how.top_k else scores.logsumexp(-1, keepdim=True)
        before = _cumulated_before(values, totals)
        if not how.top_k and size < vocabulary and bool((before[:, -1] < how.top_p).any()):
            values = scores.sort(-1, descending=True).values
            before = _cumulated_before(values, totals)
        lowest = torch.where(before < how.top_p, values, torch.inf).amin(-1, keepdim=True)
        lowest = torch.minimum(lowest, values[:, :1])
    else:
        lowest = values[:, -1:]
    return torch.where(scores >= lowest, scores, -torch.inf)


def _cumulated_before(values: Tensor, totals: Tensor) -> Tensor:
    """Return the share of the tokens before each one, [R, N], of those sorted from the most likely on."""
    shares = (values - totals).double().exp()
    return shares.cumsum(-1) - shares
