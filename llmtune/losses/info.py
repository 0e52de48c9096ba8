"""LOSS_MAPPING: what `llmtune dpo`, `kto` and `rm` minimise. Data only: nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llmtune.errors import UsageError
from llmtune.registry import Entry, Registry

Over = Literal["pairs", "labels", "scores"]
OPTION_NAMES = (
    "beta", "label_smoothing", "gamma", "alpha", "tau", "desirable_weight", "undesirable_weight", "centring",
)  # fmt: skip
"""Fields of `llmtune.losses.terms.Options`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossInfo(Entry):
    """A loss over whole responses.

    Attributes:
        function: Or `"module:attribute"`, imported on first use. Over `pairs`: `f(chosen, rejected, options) -> Terms`;
            over `labels`: `f(responses, labels, kl, options) -> Terms`; over `scores` of a reward model:
            `f(chosen, rejected, margin, options) -> Terms`. See `llmtune.losses.terms`.
        over: What it is computed on: pairs of responses, labelled responses, or scores of pairs.
        needs_reference: Whether it reads the reference model's log-probabilities.
        per_token: Whether it compares log-probabilities per token; the rewards that are logged do then, too.
        reads: Names of the `Options` that it reads; None: unknown, so that none is called without effect.
        defaults: Values of `Options` that differ from its own, by name.
        above, below: Bounds of options, by name, at which the formula has no value.
        description: One line for `llmtune list losses`.
        source: The paper.
    """

    function: str | Callable[..., Any]
    over: Over = "pairs"
    needs_reference: bool = True
    per_token: bool = False
    reads: tuple[str, ...] | None = None
    defaults: Mapping[str, float] = field(default_factory=dict)
    above: Mapping[str, float] = field(default_factory=dict)
    below: Mapping[str, float] = field(default_factory=dict)
    description: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if self.over not in ("pairs", "labels", "scores"):
            raise UsageError(f"over of a loss entry is pairs, labels or scores, not {self.over!r}.")


LOSS_MAPPING: Registry[LossInfo] = Registry(
    "loss",
    LossInfo,
    builtin="llmtune.losses.builtin",
    function_field="function",
    entry_points="llmtune.losses",
    list_command="llmtune list losses",
)
register_loss = LOSS_MAPPING.register
