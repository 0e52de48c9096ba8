"""export() and merge(): a checkpoint becomes a folder for somewhere else."""

from __future__ import annotations

from pathlib import Path

from llmtune.arguments.merge import MergeArguments
from llmtune.exporting.merge import merge_checkpoint
from llmtune.utils.quiet import quiet_libraries

__all__ = ["merge"]


def merge(args: MergeArguments) -> Path:
    """Merge an adapter into its base.

    Returns:
        The folder.

    Raises:
        LlmtuneError: See `merge_checkpoint`.
    """
    quiet_libraries()
    target = None if args.output_dir is None else Path(args.output_dir)
    return merge_checkpoint(
        args.infer_arguments(), target, max_shard_size=args.max_shard_size, resize_embeddings=args.resize_emb
    )
