"""Inputs and outputs of losses: scores of responses, options, and terms divided by counts of a whole step.

Shapes: n responses or pairs of a micro-batch, K tokens of its responses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Responses:
    """Log-probabilities of n responses.

    Attributes:
        logps: Summed over the tokens of each response, [n], with gradient.
        num_tokens: Tokens of each, [n].
        reference: `logps` of the reference model, [n]; None for a loss that needs none.
    """

    logps: Tensor
    num_tokens: Tensor
    reference: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """Log-probability per token, [n]."""
        return self.logps / self.num_tokens

    @property
    def ratio(self) -> Tensor:
        """Log of the policy's probability over the reference's, [n]."""
        assert self.reference is not None, "LossInfo.needs_reference says that it is not read"
        return self.logps - self.reference


@dataclass(frozen=True)
class Options:
    """Settings of losses; each loss uses some of them.

    Attributes:
        beta: How strongly the policy is held to the reference, or the scale of log-probabilities without one.
        label_smoothing: Share of pairs whose responses are taken to be in the wrong order.
        gamma: Margin that SimPO asks for, in its own unit (after `beta`).
        alpha: Weight of the negative log-likelihood of chosen responses, where a loss has that term.
        tau: Temperature of DiscoPOP's mixing.
        desirable_weight, undesirable_weight: Of responses labelled true and false.
        centring: Weight of the squared sum of a pair's scores, which holds the scores around 0.
        epsilon: How far the ratio of a sampled token's probabilities may fall below 1 before its gradient ends.
        epsilon_high: The same above 1; None: epsilon. Of cispo, the largest weight of a token.
        max_tokens: Most tokens of a sampled response.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float = 0.0
    alpha: float = 0.0
    tau: float = 0.05
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    centring: float = 0.0
    epsilon: float = 0.2
    epsilon_high: float | None = None
    max_tokens: float = 512


@dataclass(frozen=True)
class Terms:
    """Loss of each pair or response, before the division.

    The trainer sums each part over the optimizer step, all micro-batches and ranks, and divides by the step's number
    of pairs or responses, and of tokens; so it never matters how a step is cut into micro-batches.

    Attributes:
        sequences: [n], divided by the number of pairs or responses.
        tokens: [n], sums over tokens of the chosen responses, divided by their number of tokens; None: no such part.
    """

    sequences: Tensor
    tokens: Tensor | None = None


# Losses over the tokens of sampled responses


@dataclass(frozen=True)
class PolicyTokens:
    """Sampled tokens, response by response.

    Attributes:
        logps: Log-probability of each, [K], with gradient.
        old: The same when they were sampled, [K].
        advantages: [K].
        responses: Number of the response of each, [K].
        num_tokens: Tokens of each response, [n].
        reference: `logps` of the reference model, [K]; None where the loss does not hold the policy to it.
        correction: Weights that make up for an engine whose distribution is not the model's, [K]; None: all 1.
    """

    logps: Tensor
    old: Tensor
    advantages: Tensor
    responses: Tensor
    num_tokens: Tensor
    reference: Tensor | None = None
    correction: Tensor | None = None

    @property
    def ratio(self) -> Tensor:
        """Probability of each token over that when it was sampled, [K]."""
        return torch.exp(self.logps - self.old)

    def summed(self, values: Tensor) -> Tensor:
        """Sum values of tokens, [K], over each response, [n]."""
        found = torch.zeros(len(self.num_tokens), dtype=values.dtype, device=values.device)
        return found.index_add(0, self.responses, values)


@dataclass(frozen=True)
class PolicyTerms:
    """Loss of each response, before the division; one of the two.

    Attributes:
        sequences: [n], divided by the number of responses of the step.
        tokens: [n], sums over tokens, divided by the tokens of the step.
        low, high: Tokens whose ratio has left its range below and above, bool [K].
    """

    sequences: Tensor | None
    tokens: Tensor | None
    low: Tensor
    high: Tensor
