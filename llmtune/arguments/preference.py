"""Arguments of the stages that learn from preferences: dpo, kto and rm."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Literal

from llmtune.arguments.fields import Problems, Rule, above, at_least, between, changed, fixed, taken
from llmtune.arguments.stage import StageArguments
from llmtune.errors import UsageError
from llmtune.losses.info import LOSS_MAPPING, OPTION_NAMES, LossInfo
from llmtune.types import RowKind


@dataclass(kw_only=True)
class PreferenceArguments:
    """Preferences."""

    share_prompt: Literal["auto", "true", "false"] = fixed("auto")
    """Compute each prompt once for all its responses; auto: wherever the model's attention allows it."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda args: args.truncation_strategy != "right",
            "--truncation_strategy right would cut responses, of which each token counts: use left, which removes the "
            "oldest turns of the prompt, or delete.",
        ),
        Rule(
            lambda args: args.loss_on == "auto",
            "--loss_on {loss_on} is for sft: here, exactly the responses are compared. Remove it.",
        ),
    )

    @property
    def concatenates(self) -> bool:
        return bool(super().concatenates) or self.share_prompt != "false"  # type: ignore[misc]


@dataclass(kw_only=True)
class LossArguments:
    """Loss."""

    loss: list[str] = fixed(factory=list)
    """Losses (`llmtune list losses`), several with weights: sigmoid, or sigmoid sft*0.2."""


@dataclass(kw_only=True)
class ReferenceArguments(LossArguments):
    """Reference model."""

    beta: float | None = fixed(None, within=above(0))
    """How strongly the model is held to the reference. Default: the loss's own, mostly 0.1."""
    label_smoothing: float | None = fixed(None, within=between(0, 0.5))
    """Fraction of the pairs that are taken to be in the wrong order."""
    sft_weight: float = fixed(0.0, within=at_least(0))
    """Weight of the cross entropy of the chosen responses, added to the loss (RPO)."""
    reference: str | None = fixed(None)
    """Model that the trained one is held to: a folder, a hub id or an adapter. Default: the model as the run begins."""


BETA = 0.1
"""Default of losses that have none of their own."""


def parse_losses(texts: list[str], default: str) -> list[tuple[str, float]]:
    """Parse `key` or `key*weight`.

    Raises:
        UsageError: A weight that is not a number.
    """
    found = []
    for text in texts or [default]:
        key, star, weight = text.partition("*")
        try:
            found.append((key, float(weight) if star else 1.0))
        except ValueError:
            raise UsageError(f"--loss {text}: {weight!r} is not a weight. Write key*weight, as in sft*0.2.") from None
    return found


@dataclass(kw_only=True)
class LossOptions:
    """Options of single losses."""

    gamma: float | None = fixed(None, within=at_least(0))
    """simpo: margin between the scores of chosen and rejected responses."""
    alpha: float | None = fixed(None, within=at_least(0))
    """simpo, cpo, orpo: weight of the cross entropy of the chosen responses in the loss."""
    tau: float | None = fixed(None, within=above(0))
    """discopop: temperature of the mixing."""
    ld_alpha: float | None = fixed(None, within=between(0, 1))
    """LD-DPO: weight of tokens beyond the length of the shorter response; 1 or unset: all weigh the same."""


class WithLosses:
    """Arguments with a list of losses over rows of a kind."""

    KIND: ClassVar[RowKind]
    LOSS: ClassVar[str]
    OVER: ClassVar[str]
    OPTIONS: ClassVar[tuple[str, ...]]
    OTHERS: ClassVar[tuple[str, ...]] = ()
    """Flags that share the name of an option of losses, and are none."""

    def losses(self) -> list[tuple[str, float]]:
        """Keys of LOSS_MAPPING and their weights in the sum."""
        found = parse_losses(self.loss, self.LOSS)  # type: ignore[attr-defined]
        weight = getattr(self, "sft_weight", 0.0)
        return [*found, ("sft", weight)] if weight else found

    def options_of(self, key: str) -> dict[str, float]:
        """Options of a loss: flags over the entry's defaults."""
        given = {name: getattr(self, name, None) for name in self.OPTIONS}
        found = {**LOSS_MAPPING[key].defaults, **{name: value for name, value in given.items() if value is not None}}
        return {"beta": BETA, **found} if "beta" in self.OPTIONS else found

    def loss_text(self) -> str:
        """Describe the losses with their options."""
        parts = []
        for key, weight in self.losses():
            options = ", ".join(f"{name} {value:g}" for name, value in sorted(self.options_of(key).items()))
            parts.append((f"{weight:g} * " if weight != 1 else "") + key + (f" ({options})" if options else ""))
        return " + ".join(parts)

    def unused_flags(self) -> list[str]:
        """Those of every run, and options that none of the losses reads."""
        infos = [LOSS_MAPPING[key] for key, _ in self.losses()]
        read = {name for info in infos for name in (OPTION_NAMES if info.reads is None else info.reads)}
        given = (field.name for field in changed(self))
        unread = [f"--{name}" for name in given if name in OPTION_NAMES and name not in (*read, *self.OTHERS)]
        return [*super().unused_flags(), *unread]  # type: ignore[misc]

    @property
    def needs_reference(self) -> bool:
        return any(LOSS_MAPPING[key].needs_reference for key, _ in self.losses())


def check_losses(args: Any, problems: Problems) -> None:
    """Check the keys of `--loss`, and what the reference excludes."""
    try:
        losses = args.losses()
        infos = [LOSS_MAPPING[key] for key, _ in losses]
    except UsageError as err:
        problems.need(False, str(err))
        return
    for (key, _), info in zip(losses, infos, strict=True):
        of_kind = ", ".join(key for key, one in LOSS_MAPPING.items() if one.over == args.OVER)
        problems.need(info.over == args.OVER, f"--loss {key} is over {info.over}: choose from {of_kind}.")
        _check_bounds(args.options_of(key), key, info, problems)
    if not any(info.needs_reference for info in infos):
        problems.need(
            getattr(args, "reference", None) is None,
            f"--reference: --loss {losses[0][0]} has no reference model. Remove it.",
        )
        return
    problems.need(
        not args.streaming or (args.sft_type != "full" and args.peft_path is None and args.reference is None),
        "--streaming true cannot compute the reference's log-probabilities in advance: it needs a fresh adapter, whose "
        "base is the reference (--sft_type lora, no --peft_path or --reference), or a loss without a reference.",
    )


def _check_bounds(options: dict[str, float], key: str, info: LossInfo, problems: Problems) -> None:
    for name, value in options.items():
        low, high = info.above.get(name, -inf), info.below.get(name, inf)
        problems.need(value > low, f"--{name} {value:g}: --loss {key} needs a value above {low:g}.")
        problems.need(value < high, f"--{name} {value:g}: --loss {key} needs a value below {high:g}.")


@dataclass(kw_only=True)
class PreferenceRateArguments:
    """Learning rate."""

    learning_rate: float | None = taken(None, within=above(0))
    """Peak learning rate. Default: 2e-5 for lora, 1e-6 for full, 2e-4 for adalora, 5e-4 for ia3, 8e-4 for vera. Lower
    than for sft: the model answers already, and large steps make chosen responses less probable, too."""


@dataclass(kw_only=True)
class DpoArguments(
    PreferenceRateArguments, LossOptions, ReferenceArguments, PreferenceArguments, WithLosses, StageArguments
):
    """Arguments of `dpo()`.

    Raises:
        UsageError: All invalid or contradictory values at once. UnknownKeyError: No such model, template or loss.
    """

    STAGE = "dpo"
    KIND = "pairs"
    LOSS = "sigmoid"
    OVER = "pairs"
    OPTIONS = ("beta", "label_smoothing", "gamma", "alpha", "tau")
    LEARNING_RATES: ClassVar[dict[str, float]] = {
        "lora": 2e-5, "full": 1e-6, "adalora": 2e-4, "ia3": 5e-4, "vera": 8e-4,
    }  # fmt: skip

    def _check(self, problems: Problems) -> None:
        check_losses(self, problems)


@dataclass(kw_only=True)
class LabelArguments:
    """Labels."""

    desirable_weight: float = fixed(1.0, within=at_least(0))
    """Weight of responses that are labelled good; weight times number should be 1 to 4/3 times that of the bad ones."""
    undesirable_weight: float = fixed(1.0, within=at_least(0))
    """Weight of responses that are labelled bad."""


@dataclass(kw_only=True)
class KtoArguments(
    LabelArguments, PreferenceRateArguments, ReferenceArguments, PreferenceArguments, WithLosses, StageArguments
):
    """Arguments of `kto()`.

    Raises:
        UsageError: All invalid or contradictory values at once. UnknownKeyError: No such model, template or loss.
    """

    STAGE = "kto"
    KIND = "labels"
    LOSS = "kto"
    OVER = "labels"
    OPTIONS = ("beta", "desirable_weight", "undesirable_weight")
    LEARNING_RATES: ClassVar[dict[str, float]] = DpoArguments.LEARNING_RATES

    def _check(self, problems: Problems) -> None:
        check_losses(self, problems)


@dataclass(kw_only=True)
class RewardArguments:
    """Reward model."""

    learning_rate: float | None = taken(None, within=above(0))
    """Peak learning rate. Default: 1e-4 for lora, 1e-5 for full, 1e-3 for adalora, 3e-3 for ia3, 4e-3 for vera. The
    head is new, and the model below it changes less than in sft."""
    use_margin: bool = fixed(True)
    """Ask for the row's margin between the scores, where the data has one."""
    centring: float = fixed(0.0, within=at_least(0))
    """Weight of the squared sum of a pair's scores, which holds scores around 0; 0.01 is common."""


@dataclass(kw_only=True)
class RmArguments(RewardArguments, LossArguments, PreferenceArguments, WithLosses, StageArguments):
    """Arguments of `rm()`.

    Raises:
        UsageError: All invalid or contradictory values at once. UnknownKeyError: No such model or template.
    """

    STAGE = "rm"
    KIND = "pairs"
    SCORES = True
    LOSS = "bradley_terry"
    OVER = "scores"
    OPTIONS = ("centring",)
    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda args: not args.predict_with_generate,
            "--predict_with_generate: a reward model writes no text. Remove it.",
        ),
    )
    LEARNING_RATES: ClassVar[dict[str, float]] = {
        "lora": 1e-4, "full": 1e-5, "adalora": 1e-3, "ia3": 3e-3, "vera": 4e-3,
    }  # fmt: skip

    def _check(self, problems: Problems) -> None:
        check_losses(self, problems)
