"""`llmtune infer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmtune.arguments.checks import check_sources
from llmtune.arguments.infer import InferArguments
from llmtune.arguments.parser import parse
from llmtune.cli.dry_run import DryRunArguments, show_infer

SUMMARY = """
Generate for a dataset with a checkpoint, or chat with it. Its training settings are read from the checkpoint:
  llmtune infer --ckpt_dir output/llmtune-tiny/v0-.../checkpoint-50
  llmtune infer --ckpt_dir output/llmtune-tiny/v0-.../checkpoint-50 --eval_human true
"""


@dataclass(kw_only=True)
class InferCommand(DryRunArguments, InferArguments):
    """Inference."""


ARGUMENTS = InferCommand


def run(argv: Sequence[str]) -> int:
    args = parse(InferCommand, argv, command="infer", summary=SUMMARY)
    if not args.eval_human:
        check_sources(args)
    if args.dry_run:
        show_infer(args)
        return 0
    from llmtune.inference.infer import infer

    infer(args)
    return 0
