"""Objective: the interface between the trainer and a loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from llmtune.distributed.collectives import sum_over_ranks

Phase: TypeAlias = Literal["train", "eval"]


@dataclass(frozen=True)
class Totals:
    """Divisors of a loss: counts of a whole optimizer step, over its micro-batches and all ranks.

    Attributes:
        sequences: Number of sequences, a scalar.
        tokens: Trainable tokens, or the sum of their weights, a scalar; an integer if it is a whole number.
    """

    sequences: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Share:
    """Contribution of a micro-batch to its step.

    Attributes:
        loss: Its share of the step's loss, a scalar: the shares of all micro-batches and ranks add up to the loss.
        metrics: Name -> sum and count, or several of them; the trainer adds up sums and counts over batches and
            processes, and logs the quotient, or the sum of the quotients.
    """

    loss: Tensor
    metrics: Mapping[str, Sequence[tuple[Tensor, Tensor]]] = field(default_factory=dict)


class Objective(Protocol):
    """A loss computed per micro-batch.

    Attributes:
        divergence_limit: A loss above it has diverged, and the run stops; None: no limit.
        train_metrics, eval_metrics: Names of the metrics that shares have in training and in evaluation; the latter
            hold `loss`.
        measures: Whether the loss needs a statistic of the whole step, or evaluation, before its first forward pass:
            see `measure`.
    """

    @property
    def divergence_limit(self) -> float | None: ...

    @property
    def train_metrics(self) -> tuple[str, ...]: ...

    @property
    def eval_metrics(self) -> tuple[str, ...]: ...

    @property
    def measures(self) -> bool: ...

    def count(self, batch: Mapping[str, Any]) -> Totals:
        """Count a micro-batch for the totals of its step; called for all of them before the first forward."""
        ...

    def share(self, model: Any, batch: dict[str, Any], totals: Totals | None) -> Share:
        """The loss of a micro-batch. `totals`: of its step; None in evaluation, where metrics alone count."""
        ...

    def measure(self, model: Any, batch: dict[str, Any]) -> Tensor:
        """Sums of a micro-batch, without gradient; the trainer adds them up over the step and all ranks."""
        ...

    def settle(self, sums: Tensor) -> None:
        """Take the sums of the step, or evaluation, that begins."""
        ...

    def derived(self, phase: Phase, loss: float) -> dict[str, float]:
        """Return metrics that follow from the mean loss of the training, or of an evaluation."""
        ...


class Plain:
    """Base of objectives whose loss says all."""

    def derived(self, phase: Phase, loss: float) -> dict[str, float]:
        return {}


class Unmeasured(Plain):
    """Base of objectives that need no statistic before the first forward pass."""

    measures = False

    def measure(self, model: Any, batch: dict[str, Any]) -> Tensor:
        raise NotImplementedError

    def settle(self, sums: Tensor) -> None:
        raise NotImplementedError


MOST_QUOTIENTS = 2


class Metrics:
    """Sums and counts by name, reduced over ranks when read.

    Args:
        names: Known beforehand, so that all ranks reduce the same ones, whatever their batches.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._sums = torch.zeros((len(self.names), MOST_QUOTIENTS, 2), dtype=torch.float64)

    def add(self, metrics: Mapping[str, Sequence[tuple[Tensor, Tensor]]]) -> None:
        for row, name in enumerate(self.names):
            for place, pair in enumerate(metrics.get(name, ())):
                self._sums[row, place] += torch.stack([value.detach().cpu().double() for value in pair])

    def take(self) -> dict[str, float]:
        """Return the means over all ranks and reset; names without values are omitted. Collective."""
        sums = sum_over_ranks(self._sums.flatten().tolist()) if self.names else []
        self._sums.zero_()
        found: dict[str, float] = {}
        for place, (total, count) in enumerate(zip(sums[::2], sums[1::2], strict=True)):
            if count:
                name = self.names[place // MOST_QUOTIENTS]
                found[name] = found.get(name, 0.0) + total / count
        return found
