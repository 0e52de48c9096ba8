"""Inputs and outputs of losses: scores of responses, options, and terms divided by counts of a whole step.

Shapes: n responses or pairs of a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float = 0.0
    alpha: float = 0.0
    tau: float = 0.05
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    centring: float = 0.0


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
