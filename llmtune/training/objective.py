"""What a stage minimises: the contract between the trainer and a loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from llmtune.distributed.collectives import sum_over_ranks

__all__ = ["Metrics", "Objective", "Share", "Totals"]


@dataclass(frozen=True)
class Totals:
    """What a loss is divided by: counts of a whole optimizer step, over its micro-batches and all processes.

    Attributes:
        sequences: Of them, a scalar.
        tokens: Trainable tokens, or the sum of their weights, a scalar; of integers where it is a whole number.
    """

    sequences: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Share:
    """What a micro-batch contributes to its step.

    Attributes:
        loss: Its share of the step's loss, a scalar: the shares of all micro-batches and processes add up to the loss.
        metrics: Name -> sum and count; the trainer adds both up over batches and processes, and logs the quotients.
    """

    loss: Tensor
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Objective(Protocol):
    """A loss that is computed share by share.

    Attributes:
        divergence_limit: A loss above it has diverged, and the run stops; None: no value says so.
        train_metrics, eval_metrics: Names of the metrics that shares have in training and in evaluation; the latter
            hold `loss`.
    """

    @property
    def divergence_limit(self) -> float | None: ...

    @property
    def train_metrics(self) -> tuple[str, ...]: ...

    @property
    def eval_metrics(self) -> tuple[str, ...]: ...

    def count(self, batch: Mapping[str, Any]) -> Totals:
        """What a micro-batch adds to the totals of its step; called for all of them before the first forward."""
        ...

    def share(self, model: Any, batch: dict[str, Any], totals: Totals | None) -> Share:
        """The loss of a micro-batch. `totals`: of its step; None in evaluation, where metrics alone count."""
        ...


class Metrics:
    """Sums and counts by name, reduced over processes when they are read.

    Args:
        names: Known beforehand, so that all processes reduce the same ones, whatever batches they met.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._sums = torch.zeros((len(self.names), 2), dtype=torch.float64)

    def add(self, metrics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        for row, name in enumerate(self.names):
            if name in metrics:
                self._sums[row] += torch.stack([value.detach().double().cpu() for value in metrics[name]])

    def take(self) -> dict[str, float]:
        """The means over all processes, which all have to ask; what nothing was added to is left out. Starts anew."""
        sums = sum_over_ranks(self._sums.flatten().tolist()) if self.names else []
        self._sums.zero_()
        pairs = zip(self.names, sums[::2], sums[1::2], strict=True)
        return {name: total / count for name, total, count in pairs if count}
