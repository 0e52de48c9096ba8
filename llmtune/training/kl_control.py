"""Adaptive weight of the KL in the reward (Ziegler et al., arXiv 1909.08593, section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass

MOST = 0.2
"""Largest relative error that counts."""


@dataclass
class KlControl:
    """Raises beta while the KL of responses is above the target, and lowers it below.

    Attributes:
        beta: Weight now.
        target: KL of a response, in nats.
        horizon: Responses in which beta can change by a factor of about 1.2.
    """

    beta: float
    target: float
    horizon: int

    def follow(self, kl: float, num_responses: int) -> None:
        """Adapt beta to the mean KL of some responses."""
        error = min(max(kl / self.target - 1, -MOST), MOST)
        self.beta *= 1 + error * num_responses / self.horizon
