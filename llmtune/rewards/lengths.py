"""Rewards for the length of completions, in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmtune.errors import UsageError

CACHE_SHARE = 5
"""Without `cache`, a fifth of max_length, as in DAPO: 4,096 of 20,480."""


def required_length(value: Any, reward: str) -> int:
    """Return `max_length`.

    Raises:
        UsageError: Neither the user nor the run gives one, or it is not a whole number above 0.
    """
    if value is None:
        raise UsageError(f"The reward {reward} needs max_length: write {reward}(max_length=1024).")
    return whole_number(value, f"{reward}(max_length=...)", at_least=1)


def whole_number(value: Any, what: str, *, at_least: int) -> int:
    """Return an option that counts.

    Raises:
        UsageError: It is not a whole number, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise UsageError(f"The reward {what} takes a whole number from {at_least} on, not {value!r}.")
    return value


@dataclass(frozen=True, kw_only=True)
class SoftOverlong:
    """Penalty of DAPO for completions close to the length limit.

    With L tokens and `start = max_length - cache`: 0 for L <= start, (start - L) / cache up to max_length, then -1.

    Args:
        max_length: Tokens at which the penalty is -1. Filled from the run's `--max_completion_length`.
        cache: Tokens before it over which the penalty grows; by default a fifth of max_length.

    Source:
        Equation 13 of DAPO, https://arxiv.org/abs/2503.14476
    """

    max_length: int | None = None
    cache: int | None = None

    def __post_init__(self) -> None:
        limit = required_length(self.max_length, "soft_overlong")
        if self.cache is not None and whole_number(self.cache, "soft_overlong(cache=...)", at_least=0) > limit:
            raise UsageError(f"The reward soft_overlong: cache={self.cache} is more than max_length={limit}.")

    def __call__(self, completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        limit = required_length(self.max_length, "soft_overlong")
        cache = limit // CACHE_SHARE if self.cache is None else self.cache
        return [_overlong(len(ids), limit, cache) for ids in completion_ids]


def _overlong(length: int, limit: int, cache: int) -> float:
    start = limit - cache
    if length <= start:
        return 0.0
    return -1.0 if length > limit else (start - length) / cache


@dataclass(frozen=True, kw_only=True)
class Length:
    """1 inside a range of lengths, less outside of it.

    With L tokens: 1 for min <= L <= max; L / min below; 2 - L / max above, but not less than 0. `target` sets min and
    max to one number, so that the reward is 1 - |L - target| / target.

    Args:
        target: Wanted number of tokens.
        min, max: A range instead; either may be omitted.

    Source:
        The linear distance from a wanted length of L1, https://arxiv.org/abs/2503.04697
    """

    target: int | None = None
    min: int | None = None
    max: int | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        for name, value in given.items():
            whole_number(value, f"length({name}=...)", at_least=1)
        if not given or ("target" in given and len(given) > 1):
            raise UsageError("The reward length takes target, or min and max: write length(target=200).")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise UsageError(f"The reward length: min={self.min} is more than max={self.max}.")

    def __call__(self, completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        return [self._one(len(ids)) for ids in completion_ids]

    def _one(self, length: int) -> float:
        low, high = self.target or self.min, self.target or self.max
        if low is not None and length < low:
            return length / low
        if high is not None and length > high:
            over = 2 - length / high
            return over if over > 0 else 0.0
        return 1.0
