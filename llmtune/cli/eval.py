"""`llmtune eval`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmtune.arguments.checks import check_sources
from llmtune.arguments.evaluate import EvaluateArguments
from llmtune.arguments.parser import parse
from llmtune.cli.dry_run import DryRunArguments, show_eval

SUMMARY = """
Evaluate checkpoints on their validation data, or on a file: loss, ROUGE, BLEU, exact match, multiple choice.
  llmtune eval --ckpt_dir output/llmtune-tiny/v0-.../checkpoint-50 --with_base true
  llmtune eval --ckpt_dir output/llmtune-tiny/v0-... --all_checkpoints true
  llmtune eval --ckpt_dir A B --val_dataset questions.jsonl --metrics choice
"""


@dataclass(kw_only=True)
class EvalCommand(DryRunArguments, EvaluateArguments):
    """Evaluation."""


ARGUMENTS = EvalCommand


def run(argv: Sequence[str]) -> int:
    args = parse(EvalCommand, argv, command="eval", summary=SUMMARY)
    if not args.suite:
        check_sources(args.first)
    if args.dry_run:
        show_eval(args)
        return 0
    from llmtune.evaluation.evaluate import evaluate

    evaluate(args)
    return 0
