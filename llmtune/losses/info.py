"""LOSS_MAPPING: what stages minimise; ADVANTAGE_MAPPING: rewards to advantages. Data only: nothing imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llmtune.errors import UsageError
from llmtune.registry import Entry, Registry

Over = Literal["pairs", "labels", "scores", "tokens"]
OPTION_NAMES = (
    "beta", "label_smoothing", "gamma", "alpha", "tau", "desirable_weight", "undesirable_weight", "centring",
    "epsilon", "epsilon_high", "max_tokens",
)  # fmt: skip
"""Fields of `llmtune.losses.terms.Options`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossInfo(Entry):
    """A loss over responses, or over the tokens of sampled ones.

    Attributes:
        function: Or `"module:attribute"`, imported on first use. Over `pairs`: `f(chosen, rejected, options) -> Terms`;
            over `labels`: `f(responses, labels, kl, options) -> Terms`; over `scores` of a reward model:
            `f(chosen, rejected, margin, options) -> Terms`; over `tokens` of sampled responses:
            `f(policy, options) -> PolicyTerms`. See `llmtune.losses.terms`.
        over: What it is computed on: pairs of responses, labelled responses, scores of pairs, or sampled tokens.
        needs_reference: Whether it reads the reference model's log-probabilities.
        per_token: Whether it compares log-probabilities per token; the rewards that are logged do then, too.
        reads: Names of the `Options` that it reads; None: unknown, so that none is called without effect.
        defaults: Values of `Options` that differ from its own, by name.
        advantage: Over tokens: the entry of ADVANTAGE_MAPPING that belongs to it.
        kl_in_reward: Over tokens: the KL of the reference is subtracted from the rewards; else it is part of the loss.
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
    advantage: str = ""
    kl_in_reward: bool = False
    above: Mapping[str, float] = field(default_factory=dict)
    below: Mapping[str, float] = field(default_factory=dict)
    description: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if self.over not in ("pairs", "labels", "scores", "tokens"):
            raise UsageError(f"over of a loss entry is pairs, labels, scores or tokens, not {self.over!r}.")
        if (self.over == "tokens") != bool(self.advantage):
            raise UsageError("A loss over tokens names its advantage, and no other loss does.")


LOSS_MAPPING: Registry[LossInfo] = Registry(
    "loss",
    LossInfo,
    builtin="llmtune.losses.builtin",
    function_field="function",
    entry_points="llmtune.losses",
    list_command="llmtune list losses",
)
register_loss = LOSS_MAPPING.register


@dataclass(frozen=True, kw_only=True, slots=True)
class AdvantageInfo(Entry):
    """How rewards become advantages.

    Attributes:
        function: Or `"module:attribute"`, imported on first use: `f(rewards) -> list of arrays`, one value for each
            token of each response. See `llmtune.losses.advantages`.
        relative: Whether it compares the responses to a prompt: where all have the same reward, it is 0, and a prompt
            needs two responses.
        needs_values: Whether it reads a critic's values.
        description: One line for `llmtune list advantages`.
        source: The paper.
    """

    function: str | Callable[..., Any]
    relative: bool = True
    needs_values: bool = False
    description: str = ""
    source: str = ""


ADVANTAGE_MAPPING: Registry[AdvantageInfo] = Registry(
    "advantage",
    AdvantageInfo,
    builtin="llmtune.losses.builtin",
    function_field="function",
    entry_points="llmtune.advantages",
    list_command="llmtune list advantages",
)
register_advantage = ADVANTAGE_MAPPING.register
