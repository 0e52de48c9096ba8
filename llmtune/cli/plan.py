"""`llmtune plan`: memory, steps, compute and disk of a run, before any weight is loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtune.arguments.parser import parse
from llmtune.arguments.stages import stage_arguments
from llmtune.cli.stages import add_flags, take_stage

if TYPE_CHECKING:
    from llmtune.planning.plan import Plan

SUMMARY = """
Estimate what `llmtune sft` with the same flags would need: parameters, memory by part, steps, tokens, FLOPs, disk
space; whether it fits on a GPU, and if not, which flags would make it fit. Reads config.json only, no weights.
  llmtune plan --model_type qwen2.5-7b-instruct --dataset my.jsonl --gpu 24GB
  llmtune plan --model_id_or_path FOLDER --sft_type full --gpu A100-80
  llmtune plan --model_type qwen2.5-14b-instruct --dataset my.jsonl --gpu 2x24GB --device_map auto
  llmtune plan dpo ...    another stage; of grpo and ppo, with the KV cache of rollouts and the models beside
"""


@dataclass(kw_only=True)
class PlanFlags:
    """Plan."""

    gpu: str | None = None
    """GPU to plan for: its memory (24GB) or name (H100, A100-80, 4090 ...); 2x24GB: two per machine, for --device_map.
    Default: this machine."""
    json: bool = False
    """Print JSON: the same facts, and numbers in bytes."""


ARGUMENTS = add_flags(PlanFlags, stage_arguments("sft"))


def run(argv: Sequence[str]) -> int:
    stage, argv = take_stage(argv)
    arguments = add_flags(PlanFlags, stage_arguments(stage or "sft"))
    _plan(parse(arguments, argv, command="plan", summary=SUMMARY))
    return 0


def planned(args: Any) -> Plan:
    """Plan the run of these arguments, for the GPU that they name."""
    from llmtune.planning.plan import plan

    return plan(args, gpu=args.gpu)


def _plan(args: Any) -> None:
    plan = planned(args)
    if args.json:
        sys.stdout.write(json.dumps(plan.to_json(), ensure_ascii=False) + "\n")
        return
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
