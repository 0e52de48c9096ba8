"""The flags that choose attention and kernels. They change speed and memory, and nothing else."""

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
    """Attention to compute with; varlen is torch's own for rows behind one another. Default: the best there is."""


@dataclass(kw_only=True)
class SpeedArguments:
    """Kernels."""

    use_liger: bool = taken(False)
    """Take norms, rotation and activations from Liger's kernels, which need a GPU; the loss stays ours."""
    use_kernels: bool = taken(False)
    """Take layers from the kernels that their authors offer on Hugging Face, which needs a GPU and the hub."""
    torch_compile: bool = taken(False)
    """Compile the layers of the decoder: some minutes before the first step, faster steps after it."""


def check_attention(args: ModelArguments, attn_impl: str | None, problems: Problems) -> None:
    """`--use_flash_attn` and `--attn_impl` say the same thing twice; they must not differ."""
    if attn_impl is None or args.use_flash_attn is None:
        return
    text = "true" if args.use_flash_attn else "false"
    problems.need(
        attn_impl.startswith("flash") == args.use_flash_attn,
        f"--use_flash_attn {text} and --attn_impl {attn_impl} contradict each other: give --attn_impl alone.",
    )
