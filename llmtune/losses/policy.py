"""Policy losses: how the log-probabilities of sampled tokens follow their advantages.

In the formulas: r the ratio of the policy's probability of a token to that when it was sampled, A its advantage,
e `epsilon`, E `epsilon_high`, |o| the tokens of a response; k3 = exp(ref - logp) - (ref - logp) - 1, times `beta`, is
added to each token's loss where a loss holds the policy to the reference itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmtune.losses.terms import Options, PolicyTerms, PolicyTokens


def grpo(policy: PolicyTokens, options: Options) -> PolicyTerms:
    """-min(r A, clip(r, 1 - e, 1 + E) A), the mean of each response's mean."""
    losses, low, high = _clipped(policy.ratio, policy, options)
    return PolicyTerms(policy.summed(_held(losses, policy, options)) / policy.num_tokens, None, low, high)


def dapo(policy: PolicyTokens, options: Options) -> PolicyTerms:
    """The same losses, their mean over all tokens of the step: a token counts alike in short and long responses."""
    losses, low, high = _clipped(policy.ratio, policy, options)
    return PolicyTerms(None, policy.summed(_held(losses, policy, options)), low, high)


def dr_grpo(policy: PolicyTokens, options: Options) -> PolicyTerms:
    """The same losses, summed over each response and divided by the most tokens that one may have."""
    losses, low, high = _clipped(policy.ratio, policy, options)
    return PolicyTerms(policy.summed(_held(losses, policy, options)) / options.max_tokens, None, low, high)


def gspo(policy: PolicyTokens, options: Options) -> PolicyTerms:
    """As grpo, with one ratio for a response: exp of the mean of its tokens' log-ratios."""
    means = policy.summed(policy.logps - policy.old) / policy.num_tokens
    losses, low, high = _clipped(torch.exp(means)[policy.responses], policy, options)
    return PolicyTerms(policy.summed(_held(losses, policy, options)) / policy.num_tokens, None, low, high)


def cispo(policy: PolicyTokens, options: Options) -> PolicyTerms:
    """-min(r, E) A logp, the weight min(r, E) without gradient; the mean over all tokens of the step."""
    limit = math.inf if options.epsilon_high is None else options.epsilon_high
    losses = _corrected(-policy.ratio.detach().clamp(max=limit) * policy.advantages * policy.logps, policy)
    high = (policy.ratio > limit) & (policy.advantages > 0)
    return PolicyTerms(None, policy.summed(_held(losses, policy, options)), torch.zeros_like(high), high)


def rloo(policy: PolicyTokens, options: Options) -> PolicyTerms:
    """-min(R A, clip(R, 1 - e, 1 + E) A) of each response, R the ratio of its whole probability."""
    ratios = torch.exp(policy.summed(policy.logps - policy.old))
    advantages = policy.summed(policy.advantages) / policy.num_tokens
    losses = -torch.minimum(ratios * advantages, ratios.clamp(1 - options.epsilon, 1 + highest(options)) * advantages)
    if policy.correction is not None:
        losses = losses * policy.summed(policy.correction) / policy.num_tokens
    low, high = _outside(ratios, advantages, options)
    return PolicyTerms(losses, None, low[policy.responses], high[policy.responses])


def clipped(policy: PolicyTokens, options: Options) -> PolicyTerms:
    """-min(r A, clip(r, 1 - e, 1 + E) A), the mean over all tokens of the step: PPO, where KL is part of the reward."""
    losses, low, high = _clipped(policy.ratio, policy, options)
    return PolicyTerms(None, policy.summed(losses), low, high)


def _clipped(ratio: Tensor, policy: PolicyTokens, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of tokens, and which of them have left the range below and above, and so no gradient."""
    advantages = policy.advantages
    losses = -torch.minimum(ratio * advantages, ratio.clamp(1 - options.epsilon, 1 + highest(options)) * advantages)
    return _corrected(losses, policy), *_outside(ratio, advantages, options)


def highest(options: Options) -> float:
    """Return how far a ratio may rise above 1."""
    return options.epsilon if options.epsilon_high is None else options.epsilon_high


def _corrected(losses: Tensor, policy: PolicyTokens) -> Tensor:
    return losses if policy.correction is None else losses * policy.correction


def _outside(ratio: Tensor, advantages: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    low = (ratio < 1 - options.epsilon) & (advantages < 0)
    return low, (ratio > 1 + highest(options)) & (advantages > 0)


def _held(losses: Tensor, policy: PolicyTokens, options: Options) -> Tensor:
    """Add beta * k3 to the losses of tokens, where there is a reference."""
    return losses if policy.reference is None else losses + options.beta * k3(policy.logps, policy.reference)


def k3(logps: Tensor, reference: Tensor) -> Tensor:
    """Estimate of the KL of policy from reference for each token: never negative, and right on average."""
    gap = reference - logps
    return torch.exp(gap) - gap - 1


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """max((v - R)^2, (clip(v, old - c, old + c) - R)^2) / 2 of each token, and where the second one counts."""
    plain = (values - returns) ** 2
    held = (torch.clamp(values, old - clip, old + clip) - returns) ** 2
    return torch.maximum(plain, held) / 2, held > plain
