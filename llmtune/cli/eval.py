"""`llmtune eval`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmtune.arguments.checks import check_sources
from llmtune.arguments.evaluate import EvaluateArguments
from llmtune.arguments.parser import parse
from llmtune.cli import dry_run
from llmtune.cli.dry_run import DryRunArguments
from llmtune.run.model_files import find_model

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
        _show(args)
        return 0
    from llmtune.evaluation.evaluate import evaluate

    evaluate(args)
    return 0


def _show(args: EvaluateArguments) -> None:
    lacks: list[str] = []
    first = args.first
    rows = {
        "checkpoints": ", ".join(args.names()),
        "model": f"{first.display_name()}, {first.sft_type}",
        "template": str(first.template_type),
        "dtype": dry_run.dtype_text(first),
    }
    if args.suite:
        rows["suite"] = " ".join(args.suite)
    else:
        rows |= dry_run.data_rows(first, first)
        rows["metrics"] = " ".join(args.metrics) or "all that the rows allow"
        rows["rows"] = "all" if args.num_samples == -1 else f"the first {args.num_samples}"
    rows["output"] = str(args.result_folder().resolve())
    if first.sft_type != "full":
        find_model(first, bits=first.quantization_bit, sft_type=None, lacks=lacks)
    dry_run.show(rows, [f"missing here: {text}" for text in lacks])
