"""The interface of rollouts: what an engine is asked for, and what it returns. Ids in, ids out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """One response to sample.

    Attributes:
        prompt_ids: Ids that the response follows; requests with equal ones share their computation.
        seed: Numbers that its random draws depend on, and nothing else: seed of the run, step, prompt, generation.
        max_tokens: Most tokens of the response, the stop token included.
        num_drawn: Random draws that were made before, in earlier turns of the same response.
        stop: Texts that end it, beside those of the template: where calls of tools have an end of their own.
    """

    prompt_ids: tuple[int, ...]
    seed: tuple[int, ...]
    max_tokens: int
    num_drawn: int = 0
    stop: tuple[str, ...] = ()


@dataclass(slots=True)
class Rollout:
    """A sampled response.

    Attributes:
        ids: As sampled, the stop token included.
        logps: Log-probability of each id under the distribution that it was drawn from; empty if the engine has none.
        finish_reason: `stop`, by a stop token or a stop word; `length`, cut at `max_tokens`.
    """

    ids: list[int]
    logps: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "stop"


class RolloutEngine(Protocol):
    """Samples responses.

    Attributes:
        is_exact: Whether its distribution is that of the trained model, up to rounding: no ratio to correct.
    """

    is_exact: bool

    def sample(self, requests: Sequence[RolloutRequest]) -> list[Rollout]:
        """Return one rollout for each request, in order; the same ones for any batch size."""
        ...

    def update(self, step: int) -> None:
        """Take over the weights of the trained model as they are after `step` optimizer steps."""
        ...

    def close(self) -> None: ...
