"""`llmtune sft`, and `llmtune plan`: memory, steps, compute and disk of a run, before any weight is loaded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields

from llmtune.arguments.checks import check_sources
from llmtune.arguments.parser import parse
from llmtune.arguments.stage import SftArguments
from llmtune.cli.dry_run import DryRunArguments, show_sft
from llmtune.cli.main import Command
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


@dataclass(kw_only=True)
class PlanArguments(SftArguments):
    """Plan."""

    gpu: str | None = None
    """GPU to plan for: its memory (24GB) or name (H100, A100-80, 4090 ...); 2x24GB: two per machine, for --device_map.
    Default: this machine."""


def _plan(args: PlanArguments) -> None:
    from llmtune.models.devices import find_gpus

    gpus, gpu = (1, None) if args.gpu is None else find_gpus(args.gpu)
    from llmtune.planning.plan import make_plan
    from llmtune.utils.logging import quiet_libraries

    quiet_libraries()
    plan = make_plan(args, gpu, gpus)
    table = plan.rows()
    width = max(map(len, table))
    sys.stdout.writelines(f"{name:<{width}}  {text}".rstrip() + "\n" for name, text in table.items())
    for note in plan.notes:
        sys.stdout.write(f"Note: {note}\n")
    if not plan.fits:
        sys.stdout.write(_advice(plan.suggestions))


def _advice(suggestions: Sequence[object]) -> str:
    from llmtune.models.devices import gib

    if not suggestions:
        return "No setting that llmtune knows makes it fit: use a smaller model or a larger GPU.\n"
    lines = [f"  {one.text}   ({gib(one.total)})" for one in suggestions]  # type: ignore[attr-defined]
    return "\n".join(["Any one of these would make it fit, smallest change first:", *lines]) + "\n"


COMMANDS = {
    "plan": Command(
        "plan",
        PlanArguments,
        _plan,
        """
Estimate what `llmtune sft` with the same flags would need: parameters, memory by part, steps, tokens, FLOPs, disk
space; whether it fits on a GPU, and if not, which flags would make it fit. Reads config.json only, no weights.
  llmtune plan --model_type qwen2.5-7b-instruct --dataset my.jsonl --gpu 24GB
  llmtune plan --model_id_or_path FOLDER --sft_type full --gpu A100-80
  llmtune plan --model_type qwen2.5-14b-instruct --dataset my.jsonl --gpu 2x24GB --device_map auto
""",
    ),
}
