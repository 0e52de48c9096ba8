"""Losses over pairs of responses.

In the formulas: s the logistic function, b `beta`, e `label_smoothing`; c and r the log-ratios of policy and reference
of the chosen and the rejected response, d = c - r; mean(.) per token of a response.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from llmtune.losses.terms import Options, Responses, Terms


def _delta(chosen: Responses, rejected: Responses) -> Tensor:
    return chosen.ratio - rejected.ratio


def _smoothed(logits: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)


def sigmoid(chosen: Responses, rejected: Responses, options: Options) -> Terms:
    """-(1 - e) log s(b d) - e log s(-b d): DPO, and with label smoothing cDPO."""
    return Terms(_smoothed(options.beta * _delta(chosen, rejected), options.label_smoothing))


def robust(chosen: Responses, rejected: Responses, options: Options) -> Terms:
    """[-(1 - e) log s(b d) + e log s(-b d)] / (1 - 2e): unbiased where a share e of the pairs is swapped."""
    logits, noise = options.beta * _delta(chosen, rejected), options.label_smoothing
    return Terms((-(1 - noise) * logsigmoid(logits) + noise * logsigmoid(-logits)) / (1 - 2 * noise))


def hinge(chosen: Responses, rejected: Responses, options: Options) -> Terms:
    """max(0, 1 - b d)."""
    return Terms(torch.relu(1 - options.beta * _delta(chosen, rejected)))


def ipo(chosen: Responses, rejected: Responses, options: Options) -> Terms:
    """(c / n_c - r / n_r - 1 / (2b))^2, n the tokens of each response."""
    delta = chosen.ratio / chosen.num_tokens - rejected.ratio / rejected.num_tokens
    return Terms((delta - 1 / (2 * options.beta)) ** 2)


def sigmoid_norm(chosen: Responses, rejected: Responses, options: Options) -> Terms:
    """-log s(b (c / n_c - r / n_r)): DPO with log-ratios per token."""
    delta = chosen.ratio / chosen.num_tokens - rejected.ratio / rejected.num_tokens
    return Terms(-logsigmoid(options.beta * delta))


def exo_pair(chosen: Responses, rejected: Responses, options: Options) -> Terms:
    """KL of the policy's preference (s(b d), s(-b d)) from the labels' (1 - e, e)."""
    logits = options.beta * _delta(chosen, rejected)
    wins, loses = logsigmoid(logits), logsigmoid(-logits)
    noise = options.label_smoothing
    return Terms(wins.exp() * (wins - math.log1p(-noise)) + loses.exp() * (loses - math.log(noise)))


def nca_pair(chosen: Responses, rejected: Responses, options: Options) -> Terms:
    """-log s(b c) - (log s(-b c) + log s(-b r)) / 2."""
    c, r = options.beta * chosen.ratio, options.beta * rejected.ratio
    return Terms(-logsigmoid(c) - (logsigmoid(-c) + logsigmoid(-r)) / 2)


def sppo_hard(chosen: Responses, rejected: Responses, options: Options) -> Terms:
    """(c - 1 / (2b))^2 + (r + 1 / (2b))^2."""
    target = 1 / (2 * options.beta)
    return Terms((chosen.ratio - target) ** 2 + (rejected.ratio + target) ** 2)


def apo_zero(chosen: Responses, rejected: Responses, options: Options) -> Terms:
    """1 - s(b c) + s(b r): for chosen responses better than the model's own."""
    return Terms(torch.sigmoid(-options.beta * chosen.ratio) + torch.sigmoid(options.beta * rejected.ratio))


def apo_down(chosen: Responses, rejected: Responses, options: Options) -> Terms:
    """s(b c) + 1 - s(b d): for chosen responses worse than the model's own."""
    falls = torch.sigmoid(-options.beta * _delta(chosen, rejected))
    return Terms(torch.sigmoid(options.beta * chosen.ratio) + falls)


def discopop(chosen: Responses, rejected: Responses, options: Options) -> Terms:
    """-(1 - m) log s(b d) + m exp(-b d), m = s(b d / tau)."""
    logits = options.beta * _delta(chosen, rejected)
    mixing = torch.sigmoid(logits / options.tau)
    return Terms(-(1 - mixing) * logsigmoid(logits) + mixing * torch.exp(-logits))


def sft(chosen: Responses, rejected: Responses, options: Options) -> Terms:
    """Cross entropy of the chosen responses, per token of the step: a term beside others, as in RPO."""
    return Terms(torch.zeros_like(chosen.logps), -chosen.logps)


def cpo(chosen: Responses, rejected: Responses, options: Options) -> Terms:
    """-log s(b (log p_c - log p_r)), smoothed by e, + alpha * cross entropy of the chosen responses."""
    logits = options.beta * (chosen.logps - rejected.logps)
    return _with_likelihood(_smoothed(logits, options.label_smoothing), chosen, options.alpha)


def simpo(chosen: Responses, rejected: Responses, options: Options) -> Terms:
    """-log s(b (mean log p_c - mean log p_r) - gamma), smoothed by e, + alpha * cross entropy of the chosen ones."""
    logits = options.beta * (chosen.mean - rejected.mean) - options.gamma
    return _with_likelihood(_smoothed(logits, options.label_smoothing), chosen, options.alpha)


def orpo(chosen: Responses, rejected: Responses, options: Options) -> Terms:
    """-b log s(log odds_c - log odds_r) + alpha * cross entropy, odds = p / (1 - p) of the mean log-probabilities."""
    odds = _log_odds(chosen.mean) - _log_odds(rejected.mean)
    return _with_likelihood(-options.beta * logsigmoid(odds), chosen, options.alpha)


def _log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)) for p near 0 and near 1; p = 1 is taken as the largest number below it."""
    below = logp.clamp(max=-torch.finfo(logp.dtype).tiny)
    # log(1 - exp(x)): by expm1 near 0, by log1p far from it
    rest = torch.where(below > -math.log(2), torch.log(-torch.expm1(below)), torch.log1p(-torch.exp(below)))
    return below - rest


def _with_likelihood(losses: Tensor, chosen: Responses, alpha: float) -> Terms:
    return Terms(losses, -alpha * chosen.logps if alpha else None)
