"""`llmtune sft`, `dpo` and the other stages of training, and the spellings of other tools for them."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Any

from llmtune.arguments.checks import check_sources
from llmtune.arguments.elsewhere.files import is_config_word, load_config, stage_in
from llmtune.arguments.elsewhere.llama_factory import INFER
from llmtune.arguments.parser import parse
from llmtune.arguments.stage import StageArguments
from llmtune.arguments.stages import BY_FLAG, LOSSES, STAGES, stage_arguments
from llmtune.cli.dry_run import DryRunArguments, show_stage
from llmtune.cli.sweep import SweepArguments, queue_sweep
from llmtune.compat.optional import uncollected_imports
from llmtune.distributed.launch import check_launch, hand_over, is_handed_over
from llmtune.errors import UsageError
from llmtune.registry import resolve_reference
from llmtune.run.record import hand_over_folder, recorded
from llmtune.run.resolved import check_sharing
from llmtune.utils.logging import get_logger
from llmtune.utils.memory import map_large_blocks

COMMON = """`llmtune check {name}` with the same flags shows {shown}.
`--dry_run true` checks the flags and prints what would run.
  llmtune {name} --nproc 2 ...    two processes, one GPU each (or a share of the CPU cores)
"""
MASK = "the tokens that contribute to the loss"
SUMMARIES = {
    "sft": """
Fine-tune a model. You need a model and data:
  llmtune sft --model_type llmtune-tiny --dataset tiny-qa
  llmtune sft --model_type qwen2.5-7b-instruct --model_id_or_path ./Qwen2.5-7B-Instruct --dataset my.jsonl
""",
    "pt": """
Continue pre-training on plain text: .txt files, or rows with a column `text`; conversations may be among them. Long
documents continue in further windows of --max_length tokens. Results have perplexity and bits per byte:
  llmtune pt --model_type llmtune-tiny --dataset tiny-text --sft_type full --learning_rate 2e-3
  llmtune pt --model_id_or_path ./Qwen2.5-7B --dataset books/ --document file --max_length 4096
  llmtune pt --model_id_or_path ./Qwen2.5-7B --dataset corpus.jsonl --new_tokens_file terms.txt
""",
    "dpo": """
Learn from pairs of responses, a chosen and a rejected one: DPO, and by --loss its relatives, some without a reference
model. Start from a model that can answer already, or from your SFT adapter:
  llmtune dpo --model_type llmtune-tiny --dataset tiny-pairs
  llmtune dpo --model_type qwen2.5-7b-instruct --peft_path output/.../checkpoint-500 --dataset pairs.jsonl
  llmtune orpo ...    the same as dpo --loss orpo; likewise simpo, cpo, ipo
""",
    "rm": """
Train a reward model from pairs of responses: it gives a response one number, higher for the better one of a pair.
  llmtune rm --model_type llmtune-tiny --dataset tiny-pairs
  llmtune rm --model_type qwen2.5-7b-instruct --dataset pairs.jsonl
  llmtune infer --ckpt_dir output/.../checkpoint-500 --dataset pairs.jsonl    writes scores
""",
    "grpo": """
Learn from rewards of the model's own responses: for each prompt, a group of them is sampled and scored, and those above
the group's mean become more probable. Start from a model that succeeds sometimes, your SFT adapter say:
  llmtune grpo --model_type llmtune-tiny --dataset tiny-sums --rewards accuracy
  llmtune grpo --model_type qwen2.5-7b-instruct --dataset gsm8k.jsonl --rewards accuracy format*0.2 my_rewards.py:fn
  llmtune rloo ...    the same as grpo --loss rloo; `llmtune list rewards` and `llmtune list losses` show what there is
""",
    "ppo": """
Learn from rewards of the model's own responses, most often those of a reward model, with a critic that learns beside.
Policy, critic, reward model and reference share one base model, where the reward model is an adapter of it:
  llmtune ppo --model_type llmtune-tiny --dataset tiny-qa --rewards rm:output/.../checkpoint-500
  llmtune ppo --model_type qwen2.5-7b-instruct --dataset prompts.jsonl --rewards rm:./reward-model --beta 0.1
""",
    "kto": """
Learn from single responses that are labelled good (true) or bad (false); pairs count as one of each. Start from a model
that can answer already, or from your SFT adapter:
  llmtune kto --model_type llmtune-tiny --dataset tiny-labels
  llmtune kto --model_type qwen2.5-7b-instruct --peft_path output/.../checkpoint-500 --dataset labels.jsonl
""",
}


def add_flags(flags: type, stage: type[StageArguments]) -> type[Any]:
    """Return the arguments of a stage with the flags that a command adds."""
    return make_dataclass(f"{flags.__name__}Of{stage.__name__}", [], bases=(flags, stage), kw_only=True)


@functools.cache
def command_arguments(name: str) -> type[Any]:
    """Return the arguments of the command of a stage."""
    return make_dataclass(
        f"CommandOf{stage_arguments(name).__name__}",
        [],
        bases=(DryRunArguments, SweepArguments, stage_arguments(name)),
        kw_only=True,
    )


def only_the_stage(args: StageArguments) -> StageArguments:
    """Return the arguments of the run itself, as saved: all but a command's own flags."""
    stage = type(args).of_stage()
    names = [field.name for field in fields(stage) if field.init]
    found = stage(**{name: getattr(args, name) for name in names})
    found.given = args.given.intersection(names)
    return found


@dataclass(frozen=True)
class StageCommand:
    """`llmtune STAGE`."""

    name: str

    @property
    def ARGUMENTS(self) -> type[Any]:
        return command_arguments(self.name)

    @property
    def SUMMARY(self) -> str:
        online = stage_arguments(self.name).KIND == "prompts"
        shown = "prompts, and the rewards of the data's own responses" if online else MASK
        return SUMMARIES[self.name] + COMMON.format(name=self.name, shown=shown)

    def run(self, argv: Sequence[str]) -> int:
        argv = _without_stage(argv, self.name)
        args = parse(self.ARGUMENTS, argv, command=self.name, summary=self.SUMMARY)
        check_sources(args)
        if args.dry_run:
            show_stage(args)
            return 0
        if args.sweep is not None:
            return queue_sweep(self.name, without_flag(argv, "sweep"), Path(args.sweep))
        stage = only_the_stage(args)
        if is_handed_over(args.nproc, os.environ):
            check_launch(args.nproc, os.environ)
            check_sharing(stage)  # said once, and not by each process
            hand_over_folder(stage)
            hand_over(self.name, argv, nproc=args.nproc, max_restarts=args.max_restarts)
        map_large_blocks()
        with recorded(stage):  # before torch is imported, which takes seconds
            with uncollected_imports():
                run = resolve_reference(STAGES[self.name].function, what=f"The stage {self.name!r}")
            result = run(stage)
        return 130 if result.interrupted == "Ctrl-C" else 0  # a scheduler's SIGTERM is no failure


def without_flag(argv: Sequence[str], name: str) -> list[str]:
    """Return the words without a flag and its value."""
    found: list[str] = []
    skips = False
    for word in argv:
        is_it = word.partition("=")[0].replace("-", "_") == f"__{name}"
        if not is_it and not (skips and not word.startswith("--")):
            found.append(word)
        skips = is_it and "=" not in word
    return found


def _without_stage(argv: Sequence[str], name: str) -> list[str]:
    """Return the flags without those of other tools that repeat the command: `llmtune dpo --stage dpo`.

    Raises:
        UsageError: They name another stage.
    """
    words = list(argv)
    for flag in BY_FLAG.values():
        stage, words = _flagged_stage(words, flag)
        if stage not in (None, name):
            raise UsageError(f"llmtune {name} --{flag} {stage}: the two contradict each other. Call llmtune {stage}.")
    return words


COMMANDS = {name: StageCommand(name) for name in STAGES}


def take_stage(argv: Sequence[str], flag: str = "stage") -> tuple[str | None, list[str]]:
    """Split off the stage, `dpo` or `--stage dpo`, or read it from a file of flags; None where none is named."""
    words = list(argv)
    if words and not words[0].startswith("-") and not is_config_word(words[0]):
        return words[0], words[1:]
    stage, words = _flagged_stage(words, flag)
    return (_stage_of_file(words), words) if stage is None else (stage, words)


def _stage_of_file(words: Sequence[str]) -> str | None:
    """The stage that the file of flags on a command line names: `run.yaml`, `--config run.yaml`."""
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        path = value if equals else next(iter(words[place + 1 : place + 2]), None)
        if place == 0 and is_config_word(word):
            path = word
        elif name != "--config":
            continue
        if path is not None:
            return stage_in(load_config(Path(path)), [])
    return None


def _flagged_stage(words: list[str], flag: str) -> tuple[str | None, list[str]]:
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name != f"--{flag}":
            continue
        rest = words[:place] + words[place + (1 if equals else 2) :]
        return value if equals else next(iter(words[place + 1 : place + 2]), None), rest
    return None, words


def spelled(name: str, argv: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command and the flags that another tool's command means: `orpo`, `rlhf --rlhf_type kto`.

    Raises:
        UsageError: It names no stage.
    """
    if name in BY_FLAG:
        flag = BY_FLAG[name]
        stage, argv = take_stage(argv, flag)
        if stage is None:
            names = ", ".join((*STAGES, *LOSSES))
            raise UsageError(
                f"llmtune {name} needs --{flag} with the stage: {names}. Or call `llmtune STAGE`, or `llmtune {name} "
                "FILE.yaml`, where the file names the stage."
            )
        name = stage
        if name == INFER:  # a file of LLaMA-Factory that only predicts
            get_logger().info("The file trains nothing and predicts: this is llmtune infer.")
            return name, list(argv)
    if name in LOSSES:
        return LOSSES[name], ["--loss", name, *argv]
    stage_arguments(name)
    return name, list(argv)


def run_stage(name: str, argv: Sequence[str]) -> int:
    """Run a stage, for scripts that start it in their own process."""
    sys.argv = ["llmtune", name, *argv]  # for the report
    return COMMANDS[name].run(argv)
