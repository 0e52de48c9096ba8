"""Losses over single responses that are labelled good or bad, as an objective: KTO and its relatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llmtune.arguments.preference import KtoArguments
from llmtune.losses.terms import Options, Responses
from llmtune.samples.comparisons import GOOD, REFERENCE
from llmtune.samples.labelled import MISMATCHED
from llmtune.training.objective import Plain, Share, Totals
from llmtune.training.preference import WeightedLoss, adapters_off, num_tokens, response_logps

METRICS = (
    *("rewards/chosen", "rewards/rejected", "rewards/margins"),
    *("logps/chosen", "logps/rejected", "kl"),
)
"""Names that trl and its users know; chosen are the responses that are labelled good."""


class LabelledLoss(Plain):
    """Mean over the responses of a step of a weighted sum of losses over labelled responses.

    The KL that KTO compares with is measured on all mismatched responses of the step, over its micro-batches and all
    ranks, before the first forward pass that learns; of an evaluation, on all its rows.
    """

    train_metrics = METRICS
    eval_metrics = ("loss", *METRICS)
    divergence_limit = None
    tail_weight = 1.0
    measures = True
    needs_reference = True

    def __init__(self, losses: Sequence[WeightedLoss]) -> None:
        self._functions = [(loss.function, loss.options, loss.weight) for loss in losses]
        self.beta = losses[0].options.beta
        self.kl = torch.zeros(())

    @classmethod
    def of(cls, args: KtoArguments) -> LabelledLoss:
        """The objective of `--loss`."""
        return cls([WeightedLoss(key, Options(**args.options_of(key)), weight) for key, weight in args.losses()])

    def count(self, batch: Mapping[str, Any]) -> Totals:
        tokens = num_tokens(batch)
        return Totals(torch.tensor(len(tokens)), tokens.sum())

    def measure(self, model: Any, batch: dict[str, Any]) -> Tensor:
        """The sum of the log-ratios of mismatched responses, and their number, [2]."""
        mismatched = batch[MISMATCHED]
        ratios = self._responses(model, mismatched).ratio
        return torch.stack([ratios.sum(), torch.tensor(float(len(ratios)), device=ratios.device)])

    def settle(self, sums: Tensor) -> None:
        total, count = sums
        self.kl = (total / count.clamp(min=1)).clamp(min=0)

    def share(self, model: Any, batch: dict[str, Any], totals: Totals | None) -> Share:
        own = {name: value for name, value in batch.items() if name != MISMATCHED}
        responses = self._responses(model, own)
        good = own[GOOD].to(responses.logps.device) if GOOD in own else responses.logps.new_zeros(0, dtype=torch.bool)
        total = responses.logps.sum() * 0.0
        for function, options, weight in self._functions:
            total = total + weight * function(responses, good, self.kl.to(total.device), options).sequences.sum()
        count = torch.tensor(len(good), device=total.device)
        divisor = count if totals is None else totals.sequences.to(total.device)
        metrics = self._metrics(responses, good) | {"loss": [(total, count)], "kl": [(self.kl * count, count)]}
        return Share(total / divisor.clamp(min=1), metrics)

    def _responses(self, model: Any, batch: dict[str, Any]) -> Responses:
        logps = response_logps(model, batch)
        reference = batch.get(REFERENCE)
        if reference is None:  # of a stream, whose rows are not known beforehand
            with adapters_off(model):
                reference = response_logps(model, batch)
        return Responses(logps, num_tokens(batch).to(logps.device), reference.to(logps.device))

    def _metrics(self, responses: Responses, good: Tensor) -> dict[str, Sequence[tuple[Tensor, Tensor]]]:
        rewards, logps = self.beta * responses.ratio.detach(), responses.logps.detach()
        sides = [(values[side].sum(), side.sum()) for values in (rewards, logps) for side in (good, ~good)]
        chosen, rejected, *likelihoods = sides
        return {
            "rewards/chosen": [chosen],
            "rewards/rejected": [rejected],
            "rewards/margins": [chosen, (-rejected[0], rejected[1])],
            "logps/chosen": [likelihoods[0]],
            "logps/rejected": [likelihoods[1]],
        }
