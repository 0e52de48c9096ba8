"""Losses over single responses that are labelled good or bad, and over scores of a reward model."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from llmtune.losses.terms import Options, Responses, Terms


def kto(responses: Responses, labels: Tensor, kl: Tensor, options: Options) -> Terms:
    """w_d (1 - s(b (ratio - z))) of good responses, w_u (1 - s(b (z - ratio))) of bad ones.

    Args:
        labels: True for a good response, [n].
        kl: z, a scalar without gradient: the mean log-ratio of responses under prompts that are not theirs, at least 0.
    """
    above = torch.where(labels, responses.ratio - kl, kl - responses.ratio)
    return _weighted(torch.sigmoid(-options.beta * above), labels, options)


def apo_zero_unpaired(responses: Responses, labels: Tensor, kl: Tensor, options: Options) -> Terms:
    """w_d (1 - s(b ratio)) of good responses, w_u s(b ratio) of bad ones; without a KL term."""
    above = torch.where(labels, responses.ratio, -responses.ratio)
    return _weighted(torch.sigmoid(-options.beta * above), labels, options)


def _weighted(losses: Tensor, labels: Tensor, options: Options) -> Terms:
    weights = torch.where(labels, options.desirable_weight, options.undesirable_weight).to(losses.dtype)
    return Terms(weights * losses)


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | None, options: Options) -> Terms:
    """-log s(s_c - s_r - margin) + centring * (s_c + s_r)^2.

    Args:
        chosen, rejected: Scores of the responses, [n].
        margin: By how much the chosen one is better, [n]; None: 0.
    """
    gap = chosen - rejected if margin is None else chosen - rejected - margin
    return Terms(-logsigmoid(gap) + options.centring * (chosen + rejected) ** 2)
