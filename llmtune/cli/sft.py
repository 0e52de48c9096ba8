"""`llmtune sft`."""

from __future__ import annotations

from collections.abc import Sequence

from llmtune.arguments.checks import check_sources
from llmtune.arguments.sft import SftArguments
from llmtune.cli.parser import parse
from llmtune.cli.processes import hand_over

SUMMARY = """
Fine-tune a model. Needed are a model and data:
  llmtune sft --model_type llmtune-tiny --dataset tiny-qa
  llmtune sft --model_type qwen2.5-7b-instruct --model_id_or_path ./Qwen2.5-7B-Instruct --dataset my.jsonl
`llmtune check` with the same flags shows what would be learned.
  llmtune sft --nproc 2 ...    two processes, each with a GPU of its own (or a part of the CPU)
"""


def run(argv: Sequence[str]) -> int:
    args = parse(SftArguments, argv, command="sft", summary=SUMMARY)
    check_sources(args)
    hand_over("sft", argv, nproc=args.nproc, max_restarts=args.max_restarts)
    from llmtune.training.sft import sft

    return 130 if sft(args).interrupted == "Ctrl-C" else 0  # a scheduler's SIGTERM is no failure
