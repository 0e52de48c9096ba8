"""Preference losses as an objective: log-probabilities of responses, and a weighted sum of entries of LOSS_MAPPING.

A batch is one of `samples.comparisons.ComparisonCollator`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmtune.arguments.preference import DpoArguments
from llmtune.losses.info import LOSS_MAPPING
from llmtune.losses.terms import Options, Responses, Terms
from llmtune.registry import resolve_reference
from llmtune.samples.comparisons import OWN, PAIRS, REFERENCE, RESPONSES
from llmtune.training.objective import Share, Totals, Unmeasured
from llmtune.types import IGNORE_INDEX

METRICS = (
    *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    *("logps/chosen", "logps/rejected"),
)
"""Names that trl and its users know. A reward is beta times the log-ratio of policy and reference."""


@dataclass(frozen=True)
class WeightedLoss:
    """Entry of LOSS_MAPPING, with its weight in the sum and its options."""

    key: str
    options: Options
    weight: float = 1.0

    @property
    def function(self) -> Callable[..., Terms]:
        function: Callable[..., Terms] = resolve_reference(
            LOSS_MAPPING[self.key].function, what=f"The loss {self.key!r}"
        )
        return function


class PreferenceLoss(Unmeasured):
    """Mean over the pairs of a step of a weighted sum of losses; parts per token are means over the chosen tokens.

    The model must have its supervised loss installed (`models.supervised_loss`).

    Args:
        tail_weight: Weight of the log-probabilities of tokens beyond the length of the shortest response to the same
            prompt, as in LD-DPO; 1: that of all others.
    """

    train_metrics = METRICS
    eval_metrics = ("loss", *METRICS)
    divergence_limit = None  # these losses have no scale of their own

    def __init__(self, losses: Sequence[WeightedLoss], tail_weight: float = 1.0) -> None:
        self._functions = [(loss.function, loss.options, loss.weight) for loss in losses]
        self.beta = losses[0].options.beta
        self.per_token = LOSS_MAPPING[losses[0].key].per_token
        self.tail_weight = tail_weight
        self.needs_reference = any(LOSS_MAPPING[loss.key].needs_reference for loss in losses)

    @classmethod
    def of(cls, args: DpoArguments) -> PreferenceLoss:
        """The objective of `--loss`."""
        losses = [WeightedLoss(key, Options(**args.options_of(key)), weight) for key, weight in args.losses()]
        return cls(losses, 1.0 if args.ld_alpha is None else args.ld_alpha)

    def count(self, batch: Mapping[str, Any]) -> Totals:
        return Totals(torch.tensor(len(batch[PAIRS])), num_tokens(batch)[batch[PAIRS][:, 0]].sum())

    def share(self, model: Any, batch: dict[str, Any], totals: Totals | None) -> Share:
        logps = response_logps(model, batch, self.tail_weight)
        tokens = num_tokens(batch).to(logps.device)
        chosen, rejected = batch[PAIRS].to(logps.device).unbind(1)
        reference = batch[REFERENCE].to(logps.device) if REFERENCE in batch else self._live_reference(model, batch)
        sides = [
            Responses(logps[side], tokens[side], None if reference is None else reference[side])
            for side in (chosen, rejected)
        ]
        totals = self.count(batch) if totals is None else totals
        pairs, targets = (total.to(logps.device) for total in (totals.sequences, totals.tokens))
        by_pair = by_token = logps.sum() * 0.0
        for function, options, weight in self._functions:
            terms = function(*sides, options)
            by_pair = by_pair + weight * terms.sequences.sum()
            by_token = by_token if terms.tokens is None else by_token + weight * terms.tokens.sum()
        loss = by_pair / pairs.clamp(min=1) + by_token / targets.clamp(min=1)
        parts = [(by_pair, torch.tensor(len(chosen))), (by_token, tokens[chosen].sum())]
        return Share(loss, self._metrics(sides) | {"loss": parts})

    def _live_reference(self, model: Any, batch: dict[str, Any]) -> Tensor | None:
        """Of a stream, whose rows are not known beforehand."""
        if not self.needs_reference:
            return None
        with adapters_off(model):
            return response_logps(model, batch, self.tail_weight)

    def _metrics(self, sides: Sequence[Responses]) -> dict[str, Sequence[tuple[Tensor, Tensor]]]:
        scores = [side.logps if side.reference is None else side.ratio for side in sides]
        if self.per_token:
            scores = [score / side.num_tokens for score, side in zip(scores, sides, strict=True)]
        chosen, rejected = (self.beta * score.detach() for score in scores)
        values = (chosen, rejected, chosen - rejected, (chosen > rejected).float(), sides[0].logps, sides[1].logps)
        count = torch.tensor(len(chosen))
        return {name: [(value.detach().sum(), count)] for name, value in zip(METRICS, values, strict=True)}


def response_logps(model: Any, batch: Mapping[str, Any], tail_weight: float = 1.0) -> Tensor:
    """Return the summed log-probability of the trainable tokens of each response of a batch, [n] in fp32."""
    inputs = {name: value for name, value in batch.items() if name not in OWN}
    logps = model(**inputs, token_logps=True).token_logps
    numbers = _responses(batch).to(logps.device)
    if tail_weight != 1.0:
        logps = logps * _weights(batch, tail_weight).to(logps)
    found = torch.zeros(_count(batch), dtype=logps.dtype, device=logps.device)
    return found.index_add(0, numbers, logps)


@contextlib.contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """Compute with the base of a fresh adapter, which is the model as the run began, without gradients."""
    with torch.no_grad(), getattr(model, "module", model).disable_adapter():
        yield


def num_tokens(batch: Mapping[str, Any]) -> Tensor:
    """Number of trainable tokens of each response, [n]."""
    return torch.bincount(_responses(batch), minlength=_count(batch))


def _count(batch: Mapping[str, Any]) -> int:
    return int(batch[RESPONSES].max()) + 1


def _responses(batch: Mapping[str, Any]) -> Tensor:
    """Number of the response of each trainable token, [K]."""
    found: Tensor = batch[RESPONSES][:, 1:][batch["labels"][:, 1:] != IGNORE_INDEX]
    return found


def _weights(batch: Mapping[str, Any], tail_weight: float) -> Tensor:
    """`tail_weight` of each trainable token beyond the length of the shortest response that it is paired with, [K]."""
    numbers, sizes = _responses(batch), num_tokens(batch)
    shortest = sizes.clone()
    for sides in (batch[PAIRS].to(sizes.device), batch[PAIRS].flip(1).to(sizes.device)):
        shortest.scatter_reduce_(0, sides[:, 0], sizes[sides[:, 1]], "amin")
    starts = sizes.cumsum(0) - sizes
    place = torch.arange(len(numbers), device=numbers.device) - starts[numbers]  # tokens come response by response
    return torch.where(place < shortest[numbers], 1.0, tail_weight)
