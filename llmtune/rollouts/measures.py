"""Logged measures of an experience, under the names that trl and its users know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llmtune.losses.advantages import EQUAL
from llmtune.rollouts.experience import Experience


def measures_of(experience: Experience, names: Sequence[str]) -> dict[str, float]:
    """Return means and spreads of rewards, and lengths.

    Args:
        names: Of the rewards.
    """
    responses = list(experience.responses())
    if not responses:
        return {}
    lengths = np.array([one.num_sampled for one in responses])
    cut = np.array([one.is_cut for one in responses])
    found = {
        "reward": _mean([one.reward for one in responses]),
        **_spread(experience),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(cut.mean()),
    }
    if not cut.all():
        found["completions/mean_terminated_length"] = float(lengths[~cut].mean())
    found |= _tool_measures([one.counts for one in responses if one.counts])
    for name in names:
        scores = [score for one in responses if (score := one.scores.get(name)) is not None]
        if scores:
            found |= {f"rewards/{name}/mean": _mean(scores), f"rewards/{name}/std": _std(scores)}
    return found


def _spread(experience: Experience) -> dict[str, float]:
    """The spread of rewards within groups; of single responses, over all of them."""
    if all(len(group.responses) < 2 for group in experience.groups):
        return {"reward_std": _std([one.reward for one in experience.responses()])}
    spreads = [_std([one.reward for one in group.responses]) for group in experience.groups]
    return {"reward_std": _mean(spreads), "frac_reward_zero_std": _tied_share(experience)}


def _tool_measures(counts: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """Return calls per response and shares of calls, of the responses that could call tools."""
    if not counts:
        return {}
    calls, failures, cut = (sum(one.get(name, 0) for one in counts) for name in ("calls", "failures", "cut_results"))
    return {
        "completions/mean_turns": _mean([one["turns"] for one in counts]),
        "tools/call_frequency": calls / len(counts),
        "tools/failure_frequency": failures / max(calls, 1),
        "tools/cut_frequency": cut / max(calls, 1),
    }


def _tied_share(experience: Experience) -> float:
    """Share of the groups without a spread, those that were replaced included."""
    kept = [group for group in experience.groups if _is_tied([one.reward for one in group.responses])]
    replaced = max(experience.num_ties - len(kept), 0)
    return (len(kept) + replaced) / (len(experience.groups) + replaced)


def _is_tied(rewards: Sequence[float]) -> bool:
    return len(rewards) > 1 and max(rewards) - min(rewards) <= EQUAL * max(1.0, *map(abs, rewards))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _std(values: Sequence[float]) -> float:
    """Of a sample; 0 for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
