"""`llmtune sft`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from llmtune.arguments.checks import check_sources
from llmtune.arguments.parser import parse
from llmtune.arguments.stage import SftArguments
from llmtune.cli.dry_run import DryRunArguments, show_sft
from llmtune.distributed.launch import hand_over

SUMMARY = """
Fine-tune a model. You need a model and data:
  llmtune sft --model_type llmtune-tiny --dataset tiny-qa
  llmtune sft --model_type qwen2.5-7b-instruct --model_id_or_path ./Qwen2.5-7B-Instruct --dataset my.jsonl
`llmtune check` with the same flags shows the tokens that contribute to the loss.
`--dry_run true` checks the flags and prints what would run.
  llmtune sft --nproc 2 ...    two processes, one GPU each (or a share of the CPU cores)
"""


@dataclass(kw_only=True)
class SftCommand(DryRunArguments, SftArguments):
    """Fine-tuning."""

    def run_arguments(self) -> SftArguments:
        """The arguments of the run itself, as saved: all but this command's own flags."""
        names = [field.name for field in fields(SftArguments) if field.init]
        args = SftArguments(**{name: getattr(self, name) for name in names})
        args.given = self.given.intersection(names)
        return args


ARGUMENTS = SftCommand


def run(argv: Sequence[str]) -> int:
    args = parse(SftCommand, argv, command="sft", summary=SUMMARY)
    check_sources(args)
    if args.dry_run:
        show_sft(args)
        return 0
    hand_over("sft", argv, nproc=args.nproc, max_restarts=args.max_restarts)
    from llmtune.stages.sft import sft

    return 130 if sft(args.run_arguments()).interrupted == "Ctrl-C" else 0  # a scheduler's SIGTERM is no failure
