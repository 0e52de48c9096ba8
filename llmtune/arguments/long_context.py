"""The flags for texts longer than those that the model was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmtune.arguments.checks import Problems
from llmtune.arguments.fields import fixed

if TYPE_CHECKING:
    from llmtune.arguments.sft import SftArguments

__all__ = ["LongContextArguments", "RopeArguments", "check_long_context", "check_rope", "rope_options"]


@dataclass(kw_only=True)
class RopeArguments:
    """Rotary positions."""

    rope_scaling: Literal["linear", "dynamic", "yarn"] | None = fixed(None)
    """Stretch the rotary positions for texts that are longer than the model's training. Served with the same."""
    rope_factor: float | None = fixed(None)
    """How far they are stretched. Default: max_length / the model's trained length, rounded up."""


@dataclass(kw_only=True)
class LongContextArguments(RopeArguments):
    """Long texts."""

    shift_attn: bool = fixed(False)
    """Attend within groups of max_length / 4 tokens in training, half of the heads half a group further (LongLoRA)."""


def rope_options(args: RopeArguments) -> dict[str, Any]:
    """What `get_model_tokenizer` is told of stretched positions; nothing where they stay as they are."""
    if args.rope_scaling is None or args.rope_factor is None:
        return {}
    return {"rope": (args.rope_scaling, args.rope_factor)}


def check_rope(args: RopeArguments, problems: Problems) -> None:
    factor = args.rope_factor
    problems.need(factor is None or factor > 1, f"--rope_factor must be above 1, not {factor}.")
    problems.need(
        factor is None or args.rope_scaling is not None,
        "--rope_factor needs --rope_scaling linear, dynamic or yarn.",
    )


def check_long_context(args: SftArguments, problems: Problems) -> None:
    check_rope(args, problems)
    problems.need(
        not (args.shift_attn and (args.packing or args.padding_free)),
        "--shift_attn true takes one row a sequence: leave --packing and --padding_free away.",
    )
    problems.need(
        not args.shift_attn or args.attn_impl in (None, "sdpa"),
        f"--shift_attn true is an attention of its own, on sdpa: leave --attn_impl {args.attn_impl} away.",
    )
    problems.need(
        not (args.shift_attn and args.use_flash_attn),
        "--shift_attn true is an attention of its own, on sdpa: leave --use_flash_attn away.",
    )
    problems.need(
        not args.shift_attn or args.max_length != -1,
        "--shift_attn true attends within a quarter of --max_length, so -1 leaves it without a size: give 8192, say.",
    )
