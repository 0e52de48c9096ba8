"""Samples longer than a model's trained positions: counted and reported before training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmtune.arguments.stage import StageArguments
from llmtune.errors import UsageError
from llmtune.models.ports import native_config
from llmtune.utils.logging import get_logger

if TYPE_CHECKING:
    from llmtune.samples.prepare import Prepared


LEARNED_POSITIONS = frozenset({"biogpt", "codegen", "gpt2", "gpt_bigcode", "gpt_neo", "openai-gpt", "opt", "xglm"})
"""Model types with learned position embeddings, which end there."""


def note_positions(prepared: Prepared, args: StageArguments) -> None:
    """Warn about samples beyond the trained positions.

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
    if config.model_type in LEARNED_POSITIONS:
        raise UsageError(f"{text} This model has no more positions: use --max_length {limit}.")
    get_logger().warning("%s Truncate them with --max_length %d, or use --rope_scaling.", text, limit)
