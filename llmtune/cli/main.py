"""`llmtune COMMAND`: finds the command, runs it, and turns errors into one line and an exit status.

A command is a module of this folder, or an entry of `COMMANDS` in one, with `run(argv)` and, where it has flags, their
class `ARGUMENTS` and the `SUMMARY` above them.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llmtune import __version__
from llmtune.arguments.secrets import hide_secrets
from llmtune.arguments.stages import BY_FLAG, LOSSES, STAGES
from llmtune.cli.neighbours import NEIGHBOURS, ours
from llmtune.errors import LlmtuneError, UsageError
from llmtune.utils.processes import write_any_text

COMMANDS = {
    **{name: info.description for name, info in STAGES.items()},
    "infer": "Generate for a dataset with a checkpoint, or chat with it in the terminal.",
    "serve": "Serve a checkpoint with an OpenAI-compatible API.",
    "web": "Open a web page to chat with a checkpoint.",
    "eval": "Evaluate checkpoints: loss, ROUGE, BLEU, exact match, multiple choice, benchmarks.",
    "check": "Show the training data of a run: tokens, loss mask, statistics, steps. Loads no weights.",
    "plan": "Estimate the memory, time and disk space of a run, and whether it fits. Loads no weights.",
    "board": "Open the board in a browser: start, watch, stop and compare runs, chat with checkpoints.",
    "runs": "List runs, and show, follow, stop, resume or delete one.",
    "launch": "Submit sft as a SLURM, SkyPilot or Ray job, on one or more machines.",
    "merge": "Merge a LoRA checkpoint into its base, as a folder that transformers loads.",
    "export": "Merge, quantise (GPTQ, bitsandbytes), convert to GGUF for Ollama, push with a model card.",
    "list": "List models, datasets, templates, metrics, losses, advantages, rewards, tools or plugins.",
    "push": "Push a checkpoint to ModelScope or Hugging Face.",
    "show": "Show a registry entry and where it was registered.",
    "convert": "Print a file of LLaMA-Factory or Axolotl as one of ours.",
    "schema": "Print the JSON schema of a stage's YAML, for editors.",
    "completion": "Print the completion of commands, flags and values for bash, zsh or fish.",
    "env": "Print versions, GPUs and settings, for a bug report. No secrets.",
}

MODULES = {
    **dict.fromkeys(("infer", "eval", "serve", "merge", "export", "push"), "checkpoints"),
    **dict.fromkeys(STAGES, "stages"),
}
"""Modules of the commands that have none of their own."""


USAGE = """llmtune {version}: fine-tune large language models from three registries.

usage: llmtune COMMAND [--flag value ...]

{commands}

A first run, with nothing to download:
  llmtune sft --model_type llmtune-tiny --sft_type full --dataset self-intro --num_train_epochs 10 \\
      --batch_size 8 --gradient_accumulation_steps 1 --learning_rate 2e-3
  llmtune infer --ckpt_dir output/llmtune-tiny/v0-* --eval_human true --do_sample false    # ask: Who are you?

A file of flags runs as it is, LLaMA-Factory's and Axolotl's too: llmtune train run.yaml
`llmtune COMMAND --help` lists the flags of a command. --debug shows the traceback of an error."""


@dataclass(frozen=True)
class Command:
    """A command of a module that holds several. `work` gets its arguments and returns an exit status, or None for 0."""

    name: str
    ARGUMENTS: type
    work: Callable[[Any], int | None]
    SUMMARY: str

    def run(self, argv: Sequence[str]) -> int:
        from llmtune.arguments.parser import parse

        return self.work(parse(self.ARGUMENTS, argv, command=self.name, summary=self.SUMMARY)) or 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for failures, 2 for usage, 130 after Ctrl-C."""
    if argv is None:
        hide_secrets()
        write_any_text()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        return _run(arguments)
    except LlmtuneError as err:
        if debug:
            raise
        sys.stderr.write(f"llmtune: {err}\n")
        return err.exit_status
    except KeyboardInterrupt:
        sys.stderr.write("\nllmtune: interrupted.\n")
        return 130
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as err:
        if debug:
            raise
        place = f" ({err.filename})" if err.filename else ""
        sys.stderr.write(f"llmtune: {err.strerror or err}{place}. Add --debug for the traceback.\n")
        return 1
    except Exception as err:
        if debug:
            raise
        sys.stderr.write(f"llmtune: {type(err).__name__}: {_first_line(err)} Add --debug for the traceback.\n")
        return 1


def _run(arguments: list[str]) -> int:
    words = [word for word in arguments if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        listing = "\n".join(f"  {name:<{max(map(len, COMMANDS)) + 2}}{text}" for name, text in COMMANDS.items())
        sys.stdout.write(USAGE.format(version=__version__, commands=listing) + "\n")
        return 0
    if words[0] in ("--version", "version"):
        sys.stdout.write(f"llmtune {__version__}\n")
        return 0
    words = ours(words)
    if words[0] in LOSSES or words[0] in BY_FLAG:
        from llmtune.cli.stages import spelled

        name, rest = spelled(words[0], words[1:])
        words = [name, *rest]
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], [*COMMANDS, *NEIGHBOURS, *BY_FLAG], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"Unknown command {words[0]!r}.{hint} Commands: {', '.join(COMMANDS)}.")
    return int(find_command(words[0]).run(words[1:]))


def find_command(name: str) -> Any:
    module = importlib.import_module(f"llmtune.cli.{MODULES.get(name, name)}")
    return module.COMMANDS[name] if name in MODULES else module


def _first_line(err: Exception) -> str:
    text = str(err).strip().split("\n")[0]
    return text if text.endswith(".") else f"{text}."
