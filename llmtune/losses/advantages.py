"""From rewards to advantages: how much better than expected each sampled token turned out.

Shapes: n responses, T_i tokens of response i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

STD_EPSILON = 1e-4
"""Added to standard deviations, as in trl."""
BATCH_EPSILON = 1e-8
EQUAL = 1e-6
"""Rewards that differ by less, relative to the largest, are equal: sums of weighted rewards have rounding errors."""


@dataclass(frozen=True)
class Rewards:
    """Rewards of the responses of one experience.

    Attributes:
        values: Reward of each response, [n].
        groups: Number of the prompt of each, [n].
        num_tokens: Sampled tokens of each, [n].
        kl: Log-ratio of policy and reference of each token, [T_i] each; None where no KL is subtracted.
        beta: Weight of the KL in the reward.
        critic: Value of each token by a critic, [T_i] each: the expected rest of the reward before the token.
        gamma, lam: Discount and lambda of GAE.
    """

    values: Floats
    groups: NDArray[np.int64]
    num_tokens: NDArray[np.int64]
    kl: Sequence[Floats] | None = None
    beta: float = 0.0
    critic: Sequence[Floats] | None = None
    gamma: float = 1.0
    lam: float = 0.95

    def whole(self) -> Floats:
        """Reward of each response less beta times its KL, [n]."""
        if self.kl is None:
            return self.values
        return self.values - self.beta * np.array([one.sum() for one in self.kl])

    def by_token(self) -> list[Floats]:
        """Reward of each token: beta times its KL is subtracted from all, the response's reward added to the last."""
        found = []
        for number, value in enumerate(self.values):
            size = int(self.num_tokens[number])
            one = np.zeros(size) if self.kl is None else -self.beta * np.asarray(self.kl[number], np.float64)
            one[-1] += value
            found.append(one)
        return found


def group(rewards: Rewards) -> list[Floats]:
    """(r - mean) / (std + 1e-4), the sample's standard deviation over the group; exactly 0 where all are equal."""
    values = rewards.whole()
    found = _less_mean(rewards)
    for members in _groups(rewards):
        if len(members) > 1:
            found[members] /= values[members].std(ddof=1) + STD_EPSILON
    return _spread(found, rewards)


def group_mean(rewards: Rewards) -> list[Floats]:
    """R - mean of the group."""
    return _spread(_less_mean(rewards), rewards)


def group_batch(rewards: Rewards) -> list[Floats]:
    """(r - mean of the group) / (std + 1e-4), the standard deviation over all rewards of the step."""
    deviation = rewards.whole().std(ddof=1) if len(rewards.values) > 1 else 0.0
    return _spread(_less_mean(rewards) / (deviation + STD_EPSILON), rewards)


def leave_one_out(rewards: Rewards) -> list[Floats]:
    """R - mean of the group's others."""
    found = _less_mean(rewards)
    for members in _groups(rewards):
        found[members] *= len(members) / max(len(members) - 1, 1)
    return _spread(found, rewards)


def batch(rewards: Rewards) -> list[Floats]:
    """(R_t - mean) / (std + 1e-8) over all tokens, R_t the sum of the rewards of a token and those after it."""
    rests = [one[::-1].cumsum()[::-1] for one in rewards.by_token()]
    return whitened(rests)


def gae(rewards: Rewards) -> list[Floats]:
    """A_t = d_t + gamma lam A_(t+1), d_t = r_t + gamma v_(t+1) - v_t; before whitening, see `whitened`."""
    assert rewards.critic is not None, "AdvantageInfo.needs_values says that it is read"
    found = []
    for per_token, values in zip(rewards.by_token(), rewards.critic, strict=True):
        made = np.zeros(len(per_token))
        last = 0.0
        for place in reversed(range(len(per_token))):
            following = values[place + 1] if place + 1 < len(values) else 0.0
            last = per_token[place] + rewards.gamma * following - values[place] + rewards.gamma * rewards.lam * last
            made[place] = last
        found.append(made)
    return found


def whitened(arrays: Sequence[Floats]) -> list[Floats]:
    """Shift and scale values to mean 0 and deviation 1 over all of them."""
    together = np.concatenate(arrays) if len(arrays) else np.zeros(0)
    if not len(together):
        return list(arrays)
    mean, deviation = together.mean(), together.std()
    return [(one - mean) / (deviation + BATCH_EPSILON) for one in arrays]


def tied_groups(rewards: Rewards) -> list[int]:
    """Return the groups whose rewards are all equal."""
    values = rewards.whole()
    return [int(rewards.groups[members[0]]) for members in _groups(rewards) if _all_equal(values[members])]


def _groups(rewards: Rewards) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(rewards.groups == number) for number in np.unique(rewards.groups)]


def _all_equal(values: Floats) -> bool:
    return bool(np.ptp(values) <= EQUAL * max(1.0, float(np.abs(values).max())))


def _less_mean(rewards: Rewards) -> Floats:
    values = rewards.whole().astype(np.float64)
    found = np.zeros(len(values))
    for members in _groups(rewards):
        if not _all_equal(values[members]):
            found[members] = values[members] - values[members].mean()
    return found


def _spread(values: Floats, rewards: Rewards) -> list[Floats]:
    """Give each token the value of its response."""
    return [np.full(int(size), value) for value, size in zip(values, rewards.num_tokens, strict=True)]
