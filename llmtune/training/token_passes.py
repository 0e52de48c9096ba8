"""Numbers of sampled tokens, computed without gradient: log-probabilities of a model, values of a critic."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmtune.distributed.collectives import gather_from_ranks
from llmtune.distributed.ranks import rank, world_size
from llmtune.rollouts.experience import Group
from llmtune.samples.rollouts import Parts, RolloutCollator, split_by_response

Arrays = list[NDArray[np.float32]]
Numbers = Callable[[Mapping[str, Any]], Tensor]
"""Computes a number for each sampled token of a batch, [K]."""


@dataclass(frozen=True)
class TokenPasses:
    """Forward passes over groups of responses, a share of them on each rank.

    Attributes:
        model: The trained model, whose device and mode count.
        size: Most responses of a pass.
    """

    model: Any
    collator: RolloutCollator
    size: int

    def fill(self, groups: Sequence[Group], name: str, numbers: Numbers) -> None:
        """Set an array of each response. Collective."""
        own = range(rank(), len(groups), world_size())
        made = list(zip(own, self.over([groups[at] for at in own], numbers), strict=True))
        for at, arrays in (pair for part in gather_from_ranks(made) for pair in part):
            for response, values in zip(groups[at].responses, arrays, strict=True):
                setattr(response, name, values)

    def over(self, groups: Sequence[Group], numbers: Numbers) -> list[Arrays]:
        """Return the numbers of each response of each group."""
        found: list[Arrays] = [[] for _ in groups]
        with evaluating(self.model):
            for places, parts in self._batches(groups):
                values = numbers(on_device(self.model.device, self.collator(parts, (0.0, 0.0))))
                arrays = iter(split_by_response(values, parts))
                for at, (_, responses) in zip(places, parts, strict=True):
                    found[at] += [next(arrays) for _ in responses]
        return found

    def _batches(self, groups: Sequence[Group]) -> Iterator[tuple[list[int], Parts]]:
        """Yield the groups, or parts of them, of each pass, with their places."""
        places: list[int] = []
        parts: Parts = []
        room = self.size
        for at, group in enumerate(groups):
            for start in range(0, len(group.responses), self.size):
                responses = group.responses[start : start + self.size]
                if parts and len(responses) > room:
                    yield places, parts
                    places, parts, room = [], [], self.size
                places, parts = [*places, at], [*parts, (group, responses)]
                room -= len(responses)
        if parts:
            yield places, parts


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def on_device(device: torch.device, batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
