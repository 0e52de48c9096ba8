"""The objective of a reward model: the better response of each pair scores higher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llmtune.arguments.preference import RmArguments
from llmtune.losses.terms import Options
from llmtune.samples.comparisons import MARGINS, OWN, PAIRS, RESPONSES
from llmtune.training.objective import Share, Totals, Unmeasured
from llmtune.training.preference import WeightedLoss

METRICS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
BY_LENGTH = ("rewards/accuracies_chosen_longer", "rewards/accuracies_chosen_not_longer")
"""Accuracy among pairs whose better response is the longer one, and among the others: a model that only measures
length is right in the former alone."""


class RewardLoss(Unmeasured):
    """Mean over the pairs of a step of a weighted sum of losses over scores, Bradley-Terry say.

    The model must have its scores installed (`models.score`).

    Args:
        use_margin: Ask for the margins of the data.
    """

    train_metrics = METRICS
    eval_metrics = ("loss", *METRICS, *BY_LENGTH)
    divergence_limit = None

    def __init__(self, losses: Sequence[WeightedLoss], *, use_margin: bool = True) -> None:
        self._functions = [(loss.function, loss.options, loss.weight) for loss in losses]
        self._use_margin = use_margin

    @classmethod
    def of(cls, args: RmArguments) -> RewardLoss:
        """The objective of `--loss`."""
        losses = [WeightedLoss(key, Options(**args.options_of(key)), weight) for key, weight in args.losses()]
        return cls(losses, use_margin=args.use_margin)

    def count(self, batch: Mapping[str, Any]) -> Totals:
        pairs = torch.tensor(len(batch[PAIRS]))
        return Totals(pairs, pairs)

    def share(self, model: Any, batch: dict[str, Any], totals: Totals | None) -> Share:
        scores = response_scores(model, batch)
        chosen, rejected = (scores[side] for side in batch[PAIRS].to(scores.device).unbind(1))
        margin = batch[MARGINS].to(scores.device) if self._use_margin and MARGINS in batch else None
        total = scores.sum() * 0.0
        for function, options, weight in self._functions:
            total = total + weight * function(chosen, rejected, margin, options).sequences.sum()
        count = torch.tensor(len(chosen), device=scores.device)
        divisor = count if totals is None else totals.sequences.to(scores.device)
        return Share(total / divisor.clamp(min=1), _metrics(chosen, rejected, batch) | {"loss": [(total, count)]})


def response_scores(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Return the score of each response of a batch, [n] in fp32, at its last token."""
    inputs = {name: value for name, value in batch.items() if name not in OWN and name != "labels"}
    scores: Tensor = model(**inputs, score_places=last_places(batch[RESPONSES])).scores
    return scores


def last_places(responses: Tensor) -> Tensor:
    """Return the place of the last token of each response, in the flattened batch.

    Args:
        responses: Number of the response of each position, [B, T]; -1 of others.
    """
    numbers = responses.flatten()
    found = numbers.new_zeros(int(numbers.max()) + 1)
    own = numbers >= 0
    places = torch.arange(len(numbers), device=numbers.device)[own]
    return found.scatter_reduce(0, numbers[own], places, "amax")


def _metrics(chosen: Tensor, rejected: Tensor, batch: Mapping[str, Any]) -> dict[str, Sequence[tuple[Tensor, Tensor]]]:
    sizes = torch.bincount(batch[RESPONSES][batch[RESPONSES] >= 0])
    better, worse = batch[PAIRS].to(sizes.device).unbind(1)
    longer = (sizes[better] > sizes[worse]).to(chosen.device)
    right, count = (chosen > rejected).float(), torch.tensor(len(chosen))
    values = (chosen, rejected, chosen - rejected, right)
    found: dict[str, Sequence[tuple[Tensor, Tensor]]] = {
        name: [(value.detach().sum(), count)] for name, value in zip(METRICS, values, strict=True)
    }
    for name, part in zip(BY_LENGTH, (longer, ~longer), strict=True):
        found[name] = [(right[part].sum(), part.sum())]
    return found
