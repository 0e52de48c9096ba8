"""Preference losses as an objective: log-probabilities of responses, and a weighted sum of entries of LOSS_MAPPING.

A batch is one of `samples.collate`, each of its sequences a prompt with one response, plus `pairs` and `reference`: see
`samples.comparisons.ComparisonCollator`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmtune.losses.info import LOSS_MAPPING
from llmtune.losses.terms import Options, Responses, Terms
from llmtune.registry import resolve_reference
from llmtune.samples.comparisons import PAIRS, REFERENCE
from llmtune.training.objective import Share, Totals
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


class PreferenceLoss:
    """Mean over the pairs of a step of a weighted sum of losses; parts per token are means over the chosen tokens.

    The model must have its supervised loss installed (`models.supervised_loss`).
    """

    train_metrics = METRICS
    eval_metrics = ("loss", *METRICS)
    divergence_limit = None  # these losses have no scale of their own

    def __init__(self, losses: Sequence[WeightedLoss]) -> None:
        self._functions = [(loss.function, loss.options, loss.weight) for loss in losses]
        self.beta = losses[0].options.beta
        self.needs_reference = any(LOSS_MAPPING[loss.key].needs_reference for loss in losses)

    def count(self, batch: Mapping[str, Any]) -> Totals:
        tokens = _tokens_of_responses(batch)
        return Totals(torch.tensor(len(batch[PAIRS])), tokens[batch[PAIRS][:, 0]].sum())

    def share(self, model: Any, batch: dict[str, Any], totals: Totals | None) -> Share:
        inputs = {name: value for name, value in batch.items() if name not in (PAIRS, REFERENCE)}
        logps, tokens = response_logps(model, inputs), _tokens_of_responses(batch)
        chosen, rejected = batch[PAIRS].to(logps.device).unbind(1)
        reference = batch[REFERENCE].to(logps.device) if REFERENCE in batch else None
        sides = [
            Responses(logps[side], tokens.to(logps.device)[side], None if reference is None else reference[side])
            for side in (chosen, rejected)
        ]
        totals = self.count(batch) if totals is None else totals
        loss = logps.sum() * 0.0
        for function, options, weight in self._functions:
            terms = function(*sides, options)
            loss = loss + weight * terms.sequences.sum() / totals.sequences.to(loss.device)
            if terms.tokens is not None:
                loss = loss + weight * terms.tokens.sum() / totals.tokens.to(loss.device)
        return Share(loss, self._metrics(sides) | {"loss": (loss * len(chosen), torch.tensor(len(chosen)))})

    def _metrics(self, sides: Sequence[Responses]) -> dict[str, tuple[Tensor, Tensor]]:
        scores = [side.logps if side.reference is None else side.ratio for side in sides]
        chosen, rejected = (self.beta * score.detach() for score in scores)
        values = (chosen, rejected, chosen - rejected, (chosen > rejected).float(), sides[0].logps, sides[1].logps)
        count = torch.tensor(len(chosen))
        return {name: (value.detach().sum(), count) for name, value in zip(METRICS, values, strict=True)}


def response_logps(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Return the summed log-probability of the trainable tokens of each sequence of a batch, [n] in fp32."""
    logps = model(**inputs, token_logps=True).token_logps
    trainable = inputs["labels"][:, 1:] != IGNORE_INDEX
    sequences = _sequence_of_positions(inputs)
    found = torch.zeros(int(sequences.max()) + 1, dtype=logps.dtype, device=logps.device)
    return found.index_add(0, sequences[:, 1:][trainable].to(logps.device), logps)


def _tokens_of_responses(batch: Mapping[str, Any]) -> Tensor:
    """Number of trainable tokens of each sequence, [n]."""
    trainable = batch["labels"][:, 1:] != IGNORE_INDEX
    sequences = _sequence_of_positions(batch)
    return torch.bincount(sequences[:, 1:][trainable], minlength=int(sequences.max()) + 1)


def _sequence_of_positions(batch: Mapping[str, Any]) -> Tensor:
    """Number of the sequence that each position belongs to, [B, T]: its row, or of a flat batch by restarts."""
    if "attention_mask" in batch:
        return torch.arange(len(batch["labels"]), device=batch["labels"].device)[:, None].expand_as(batch["labels"])
    assert len(batch["labels"]) == 1, "packed sequences of comparisons are one flat sequence"
    return (batch["position_ids"] == 0).cumsum(1) - 1
