"""Flags of attention and kernels. They change speed and memory only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llmtune.arguments.checks import Problems
from llmtune.arguments.fields import taken

if TYPE_CHECKING:
    from llmtune.arguments.groups import ModelArguments

__all__ = ["AttentionArguments", "AttentionName", "SpeedArguments", "check_attention"]

AttentionName = Literal[
    "eager", "sdpa", "varlen", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4"
]


@dataclass(kw_only=True)
class AttentionArguments:
    """Attention."""

    attn_impl: AttentionName | None = taken(None)
    """Attention implementation; varlen: torch's variable-length attention for packed sequences. Default: the fastest
    available."""


@dataclass(kw_only=True)
class SpeedArguments:
    """Kernels."""

    use_liger: bool = taken(False)
    """Use Liger kernels for norms, RoPE and activations (GPU only); the loss stays llmtune's."""
    use_kernels: bool = taken(False)
    """Replace layers by kernels from Hugging Face's kernel hub (GPU and hub access needed)."""
    torch_compile: bool = taken(False)
    """Compile the decoder layers: minutes before the first step, faster steps after it."""


def check_attention(args: ModelArguments, attn_impl: str | None, problems: Problems) -> None:
    """Refuse `--use_flash_attn` and `--attn_impl` that contradict each other."""
    if attn_impl is None or args.use_flash_attn is None:
        return
    text = "true" if args.use_flash_attn else "false"
    problems.need(
        attn_impl.startswith("flash") == args.use_flash_attn,
        f"--use_flash_attn {text} and --attn_impl {attn_impl} contradict each other: use --attn_impl only.",
    )
