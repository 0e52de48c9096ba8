"""Samples longer than the positions that a model was trained with: counted, and told before the run spends anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmtune.arguments.sft import SftArguments
from llmtune.errors import UsageError
from llmtune.models.ports import native_config
from llmtune.utils.logging import get_logger

if TYPE_CHECKING:
    from llmtune.samples.prepare import Prepared

__all__ = ["note_positions"]

LEARNED = frozenset({"biogpt", "codegen", "gpt2", "gpt_bigcode", "gpt_neo", "openai-gpt", "opt", "xglm"})
"""Types of models with a table of positions, behind whose end there is nothing to look up."""


def note_positions(prepared: Prepared, args: SftArguments) -> None:
    """Warn of samples beyond the trained positions.

    Raises:
        UsageError: The model has no position for them at all.
    """
    config = native_config(args.folder(), trust_remote_code=args.trust_remote_code)
    trained = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(trained, int) or trained < 1:
        return
    limit = int(trained * (args.rope_factor or 1))
    lengths = prepared.train_tokens.lengths
    num_longer = int((lengths > limit).sum())
    if not num_longer:
        return
    text = (
        f"{num_longer:,} of {len(lengths):,} samples are longer than the {limit:,} positions that the model was "
        f"trained with; the longest has {int(lengths.max()):,} tokens."
    )
    if config.model_type in LEARNED:
        raise UsageError(f"{text} This model has no further ones: give --max_length {limit}.")
    get_logger().warning("%s Cut them with --max_length %d, or stretch the positions with --rope_scaling.", text, limit)
