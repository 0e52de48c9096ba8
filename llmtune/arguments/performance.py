"""Flags of attention, kernels and long context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from llmtune.arguments.fields import fixed, taken
from llmtune.arguments.rules import Rule, above

AttentionName = Literal[
    "eager", "sdpa", "varlen", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4"
]


@dataclass(kw_only=True)
class AttentionArguments:
    """Attention."""

    attn_impl: AttentionName | None = taken(None)
    """Attention implementation; varlen: torch's variable-length attention for packed sequences. Default: the fastest
    available."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda args: (
                None in (args.attn_impl, args.use_flash_attn)
                or args.attn_impl.startswith("flash") == args.use_flash_attn
            ),
            "--use_flash_attn {use_flash_attn} and --attn_impl {attn_impl} contradict each other: use --attn_impl "
            "only.",
        ),
    )


@dataclass(kw_only=True)
class SpeedArguments:
    """Kernels."""

    use_liger: bool = taken(False)
    """Use Liger kernels for norms, RoPE and activations (GPU only); the loss stays llmtune's."""
    use_kernels: bool = taken(False)
    """Replace layers by kernels from Hugging Face's kernel hub (GPU and hub access needed)."""
    torch_compile: bool = taken(False)
    """Compile the decoder layers: minutes before the first step, faster steps after it."""


# Flags for sequences longer than the model was trained on


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
