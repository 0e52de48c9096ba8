"""Flags of attention and kernels. They change speed and memory only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmtune.arguments.fields import taken
from llmtune.arguments.rules import Rule

__all__ = ["AttentionArguments", "AttentionName", "SpeedArguments"]

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
