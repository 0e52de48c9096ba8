"""`llmtune merge`: an adapter and its base become one folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from llmtune.arguments.export import MergeArguments
from llmtune.arguments.parser import parse
from llmtune.cli.dry_run import DryRunArguments, show_merge

SUMMARY = """
Merge a LoRA checkpoint into its base, tensor by tensor: memory holds one layer and one shard, not the whole model.
  llmtune merge --ckpt_dir output/llmtune-tiny/v0-.../checkpoint-50
  llmtune merge --base_model FOLDER --lora_model FOLDER --output_dir merged
"""


@dataclass(kw_only=True)
class MergeCommand(DryRunArguments, MergeArguments):
    """Merging."""


ARGUMENTS = MergeCommand


def run(argv: Sequence[str]) -> int:
    args = parse(MergeCommand, argv, command="merge", summary=SUMMARY)
    if args.dry_run:
        show_merge(args)
        return 0
    from llmtune.exporting.export import merge

    sys.stdout.write(f"{merge(args)}\n")
    return 0
