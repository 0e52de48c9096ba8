"""`llmtune infer`."""

from __future__ import annotations

from collections.abc import Sequence

from llmtune.arguments.checks import check_sources
from llmtune.arguments.infer import InferArguments
from llmtune.cli.parser import parse

SUMMARY = """
Answer a data set with a checkpoint, or talk to it. The checkpoint knows how it was trained:
  llmtune infer --ckpt_dir output/llmtune-tiny/v0-.../checkpoint-50
  llmtune infer --ckpt_dir output/llmtune-tiny/v0-.../checkpoint-50 --eval_human true
"""


def run(argv: Sequence[str]) -> int:
    args = parse(InferArguments, argv, command="infer", summary=SUMMARY)
    if not args.eval_human:
        check_sources(args)
    from llmtune.inference.infer import infer

    infer(args)
    return 0
