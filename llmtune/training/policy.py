"""Policy losses as an objective: log-probabilities of sampled tokens follow their advantages.

A batch is one of `samples.rollouts.RolloutCollator`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from llmtune.arguments.online import OnlineStage
from llmtune.distributed.ranks import world_size
from llmtune.losses.info import LOSS_MAPPING
from llmtune.losses.policy import k3
from llmtune.losses.terms import Options, PolicyTerms, PolicyTokens
from llmtune.registry import resolve_reference
from llmtune.samples.comparisons import RESPONSES
from llmtune.samples.rollouts import COUNTS, batch_inputs
from llmtune.training.objective import Share, Totals, Unmeasured
from llmtune.types import IGNORE_INDEX
from llmtune.utils.accelerator import to_float64

METRICS = ("kl", "entropy", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "sampling_ratio")
"""Names that trl and its users know."""


class PolicyLoss(Unmeasured):
    """A loss over the tokens of sampled responses.

    Args:
        temperature: That they were sampled at; log-probabilities are those of this distribution.
        correction: What is done about tokens whose engine had another probability, see `--rollout_correction`.
        limit: Largest ratio of the two.
    """

    train_metrics = METRICS
    eval_metrics = ()
    divergence_limit = None

    def __init__(
        self, key: str, options: Options, *, temperature: float = 1.0, correction: str = "none", limit: float = 2.0
    ) -> None:
        self._function: Callable[..., PolicyTerms] = resolve_reference(
            LOSS_MAPPING[key].function, what=f"The loss {key!r}"
        )
        self.options = options
        self.temperature = temperature
        self._in_loss = options.beta > 0 and not LOSS_MAPPING[key].kl_in_reward
        self._correction, self._limit = correction, limit

    @classmethod
    def of(cls, args: OnlineStage) -> PolicyLoss:
        """The objective of `--loss`."""
        one: Any = args
        options = Options(**args.options_of(args.loss_key), max_tokens=one.max_new_tokens)
        return cls(
            args.loss_key,
            options,
            temperature=one.temperature,
            correction=one.rollout_correction,
            limit=one.rollout_limit,
        )

    def count(self, batch: Mapping[str, Any]) -> Totals:
        sequences, tokens = batch[COUNTS]
        return Totals(sequences, tokens)

    def share(self, model: Any, batch: dict[str, Any], totals: Totals | None) -> Share:
        totals = self.count(batch) if totals is None else totals
        if not has_responses(batch) and world_size() == 1 and not hasattr(model, "zero_optimization"):
            # All are ties, which cost no forward pass; DeepSpeed and DDP count on one.
            return Share(torch.zeros((), requires_grad=True))
        found = model(**batch_inputs(batch), token_logps=True, token_entropies=True, temperature=self.temperature)
        logps = found.token_logps
        policy = self._policy(batch, logps)
        terms: PolicyTerms = self._function(policy, self.options)
        loss = logps.sum() * 0.0
        if terms.sequences is not None:
            loss = loss + terms.sequences.sum() / totals.sequences.to(logps.device).clamp(min=1)
        if terms.tokens is not None:
            loss = loss + terms.tokens.sum() / totals.tokens.to(logps.device).clamp(min=1)
        return Share(loss, self._metrics(batch, policy, terms, found.entropies))

    def _policy(self, batch: Mapping[str, Any], logps: Tensor) -> PolicyTokens:
        numbers = response_numbers(batch).to(logps.device)
        given = {name: batch[name].to(logps) for name in ("old", "advantages", "reference_logps") if name in batch}
        count = int(batch[RESPONSES].max()) + 1
        return PolicyTokens(
            logps,
            given.get("old", logps.detach()),
            given.get("advantages", torch.zeros_like(logps)),
            numbers,
            torch.bincount(numbers, minlength=count),
            given.get("reference_logps") if self._in_loss else None,
            self._weights(batch, logps),
        )

    def _weights(self, batch: Mapping[str, Any], logps: Tensor) -> Tensor | None:
        if "correction" not in batch or self._correction == "none":
            return None
        ratio: Tensor = batch["correction"].to(logps)
        if self._correction == "truncate":
            return ratio.clamp(max=self._limit)
        inside = (ratio <= self._limit) & (ratio >= 1 / self._limit)
        return torch.where(inside, ratio, torch.zeros_like(ratio))

    def _metrics(
        self, batch: Mapping[str, Any], policy: PolicyTokens, terms: PolicyTerms, entropies: Tensor | None
    ) -> dict[str, list[tuple[Tensor, Tensor]]]:
        count = torch.tensor(len(policy.logps))
        values: dict[str, Tensor] = {
            "clip_ratio/low_mean": terms.low,
            "clip_ratio/high_mean": terms.high,
            "clip_ratio/region_mean": terms.low | terms.high,
        }
        if entropies is not None:
            values["entropy"] = entropies
        if "reference_logps" in batch:
            values["kl"] = k3(policy.logps.detach(), batch["reference_logps"].to(policy.logps))
        if "correction" in batch:
            values["sampling_ratio"] = batch["correction"]
        return {name: [(to_float64(value).sum(), count)] for name, value in values.items()}


def has_responses(batch: Mapping[str, Any]) -> bool:
    return bool((batch[RESPONSES] >= 0).any())


def response_numbers(batch: Mapping[str, Any]) -> Tensor:
    """Number of the response of each sampled token, [K]."""
    found: Tensor = batch[RESPONSES][:, 1:][batch["labels"][:, 1:] != IGNORE_INDEX]
    return found


def token_logps(model: Any, batch: Mapping[str, Any], temperature: float) -> Tensor:
    """Return the log-probability of each sampled token of a batch, [K], without gradient."""
    with torch.no_grad():
        found: Tensor = model(**batch_inputs(batch), token_logps=True, temperature=temperature).token_logps
    return found
