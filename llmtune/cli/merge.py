"""`llmtune merge`: an adapter and its base become one folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtune.arguments.merge import MergeArguments
from llmtune.arguments.parser import parse
from llmtune.cli import dry_run
from llmtune.cli.dry_run import DryRunArguments
from llmtune.run.model_files import find_model

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
        _show(args)
        return 0
    from llmtune.exporting.export import merge

    sys.stdout.write(f"{merge(args)}\n")
    return 0


def _show(args: MergeArguments) -> None:
    found = args.infer_arguments()
    lacks: list[str] = []
    checkpoint = args.checkpoint().resolve()
    rows = {
        "checkpoint": f"{checkpoint}, {found.sft_type}",
        "base": f"{found.display_name()}, {find_model(found, bits=0, sft_type=None, lacks=lacks).text}",
        "dtype": found.dtype or "that of the base",
        "output": str(Path(args.output_dir or f"{checkpoint}-merged").resolve()),
    }
    if args.hf_hub_model_id:
        rows["pushed to"] = f"{args.hf_hub_model_id} on Hugging Face"
    dry_run.show(rows, [f"missing here: {text}" for text in lacks])
