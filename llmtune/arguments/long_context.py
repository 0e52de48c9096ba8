"""Flags for sequences longer than the model was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from llmtune.arguments.fields import fixed
from llmtune.arguments.rules import Rule, above

__all__ = ["LongContextArguments", "RopeArguments", "rope_options"]


@dataclass(kw_only=True)
class RopeArguments:
    """RoPE scaling."""

    rope_scaling: Literal["linear", "dynamic", "yarn"] | None = fixed(None)
    """RoPE scaling for sequences longer than the model was trained on; saved with the checkpoint and applied at
    inference."""
    rope_factor: float | None = fixed(None, within=above(1))
    """RoPE scaling factor. Default: max_length / the context length the model was trained on, rounded up."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda args: args.rope_factor is None or args.rope_scaling is not None,
            "--rope_factor needs --rope_scaling linear, dynamic or yarn.",
        ),
    )


@dataclass(kw_only=True)
class LongContextArguments(RopeArguments):
    """Long context."""

    shift_attn: bool = fixed(False)
    """LongLoRA's shifted sparse attention in training: groups of max_length / 4 tokens, half of the heads shifted by
    half a group."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda args: not (args.shift_attn and (args.packing or args.padding_free)),
            "--shift_attn true needs one sample per sequence: remove --packing and --padding_free.",
        ),
        Rule(
            lambda args: not args.shift_attn or args.attn_impl in (None, "sdpa"),
            "--shift_attn true has its own attention, based on sdpa: remove --attn_impl {attn_impl}.",
        ),
        Rule(
            lambda args: not (args.shift_attn and args.use_flash_attn),
            "--shift_attn true has its own attention, based on sdpa: remove --use_flash_attn.",
        ),
        Rule(
            lambda args: not args.shift_attn or args.max_length != -1,
            "--shift_attn true needs a finite --max_length, e.g. 8192: its groups are a quarter of it.",
        ),
    )


def rope_options(args: RopeArguments) -> dict[str, Any]:
    """RoPE-scaling arguments of `get_model_tokenizer`; empty without scaling."""
    if args.rope_scaling is None or args.rope_factor is None:
        return {}
    return {"rope": (args.rope_scaling, args.rope_factor)}
