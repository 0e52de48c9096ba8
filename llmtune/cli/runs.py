"""`llmtune runs`: find, watch, stop and resume runs from a terminal."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from llmtune.arguments.fields import limited
from llmtune.arguments.parser import parse
from llmtune.errors import UsageError
from llmtune.run.found import FoundRun, find_runs, pick_run, read_run, remove_run, resume_command, stop_run
from llmtune.run.queue import Queue
from llmtune.run.sentences import sentence
from llmtune.run.status import LOG_FILE

SUMMARY = """
The runs below a folder, by whomever they were started. RUN is a folder, the end of its path, or `last`.
  llmtune runs                             list them, newest first
  llmtune runs show last                   state, settings, checkpoints of one
  llmtune runs tail last --follow true     its log, until it ends
  llmtune runs stop v3-mine                save a checkpoint, then stop
  llmtune runs resume v3-mine              resume it from its last checkpoint, in this terminal
  llmtune runs rm v3-mine                  delete it, after a question
  llmtune runs work                        start queued runs one after another, until none is left
"""
POLL_SECONDS = 0.5


@dataclass(kw_only=True)
class RunsArguments:
    """Runs."""

    root: str = limited("output")
    """Folder below which runs are looked for."""
    json: bool = limited(False)
    """Print JSON. With list: one object per line."""
    lines: int = limited(40)
    """Of tail: lines to show."""
    follow: bool = limited(False)
    """Of tail: show new lines until the run ends."""
    kill: bool = limited(False)
    """Of stop: end the processes at once, without a checkpoint."""
    yes: bool = limited(False)
    """Of rm: do not ask."""


ARGUMENTS = RunsArguments


def run(argv: Sequence[str]) -> int:
    words = list(argv)
    first = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    named, flags = words[:first], words[first:]
    args = parse(RunsArguments, flags, command="runs", summary=SUMMARY)
    action = named.pop(0) if named else "list"
    if action in OF_ALL and not named:
        return OF_ALL[action](args)
    if action not in ACTIONS:
        raise UsageError(f"llmtune runs {action}: there is {', '.join([*OF_ALL, *ACTIONS])}.")
    if len(named) != 1:
        raise UsageError(f"llmtune runs {action} needs the name of a run, a folder, or `last`.")
    return ACTIONS[action](pick_run(named[0], Path(args.root)), args) or 0


def _list(args: RunsArguments) -> int:
    runs = find_runs(Path(args.root))
    if args.json:
        sys.stdout.writelines(json.dumps(record(one), ensure_ascii=False) + "\n" for one in runs)
        return 0
    if not runs:
        sys.stdout.write(f"There is no run below {args.root}. Start one with llmtune sft, or give --root FOLDER.\n")
        return 0
    rows = [("RUN", "STAGE", "STATE", "STEP", "LEFT", "LOSS", "EVAL", "STARTED"), *map(_row, runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")
    return 0


def _work(args: RunsArguments) -> int:
    """Run what is queued here; the status of the last one that failed."""
    queue, failed = Queue(Path.cwd()), 0
    while queue.waiting():
        taken = queue.take_next()
        if taken is None:  # another run has the device
            time.sleep(POLL_SECONDS)
            continue
        sys.stdout.write(f"--- {taken.file.name}: {taken.stage}  {taken.title}\n")
        sys.stdout.flush()
        environment = {"CUDA_VISIBLE_DEVICES": taken.gpus} if taken.gpus else {}
        line = [sys.executable, "-m", "llmtune", *taken.words]
        failed = subprocess.run(line, env=os.environ | environment, check=False).returncode or failed
    return failed


def _row(run: FoundRun) -> tuple[str, ...]:
    status = run.status
    left = "" if status.eta_seconds is None else str(timedelta(seconds=round(status.eta_seconds)))
    numbers = [status.metrics.get(name) for name in ("loss", "eval_loss")]
    shown = ["" if value is None else f"{value:.4g}" for value in numbers]
    step = f"{status.step}/{status.max_steps}" if status.max_steps else ""
    started = status.started.replace("T", " ")[:16]
    return run.name, status.stage, status.state, step, left, *shown, started


def record(run: FoundRun) -> dict[str, Any]:
    """The facts of a run for --json."""
    return {"folder": str(run.folder), "sentence": sentence(run), **asdict(run.status)}


def _show(run: FoundRun, args: RunsArguments) -> None:
    if args.json:
        sys.stdout.write(json.dumps(record(run), indent=2, ensure_ascii=False) + "\n")
        return
    status = run.status
    rows = {
        "run": str(run.folder),
        "state": sentence(run),
        "command": shlex.join(status.argv),
        "model": status.model,
        "data": ", ".join(status.dataset),
        "started": status.started,
        "ended": status.ended,
        "process": f"{status.pid} on {status.host}" if status.is_alive else "",
        "devices": ", ".join(status.gpus),
        "speed": "" if status.tokens_per_second is None else f"{status.tokens_per_second:,.0f} tokens/s",
        "memory": "" if status.memory_gib is None else f"{status.memory_gib:.2f} GiB",
        "best checkpoint": status.best_checkpoint,
        "last checkpoint": status.last_checkpoint,
        **{name: f"{value:.6g}" for name, value in sorted(status.metrics.items())},
    }
    width = max(len(name) for name, text in rows.items() if text)
    sys.stdout.writelines(f"{name:<{width}}  {text}\n" for name, text in rows.items() if text)


def _tail(run: FoundRun, args: RunsArguments) -> None:
    log = run.folder / LOG_FILE
    if not log.is_file():
        raise UsageError(f"{run.name} has no {LOG_FILE}: it was started by a version before 0.5.")
    with log.open(encoding="utf-8", errors="replace") as file:
        sys.stdout.writelines(file.readlines()[-args.lines :])
        sys.stdout.flush()
        while args.follow:
            found = read_run(run.folder)  # before the text, of which an ended run writes no more
            if text := file.read():
                sys.stdout.write(text)
                sys.stdout.flush()
            elif found is None or not found.status.is_alive:
                return
            else:
                time.sleep(POLL_SECONDS)


def _stop(run: FoundRun, args: RunsArguments) -> None:
    stop_run(run, kill=args.kill)
    what = "Killed" if args.kill else "It saves a checkpoint and stops:"
    sys.stdout.write(f"{what} {run.name}. To resume it: llmtune runs resume {shlex.quote(str(run.folder))}\n")


def _resume(run: FoundRun, args: RunsArguments) -> int:
    from llmtune.cli.stages import run_stage

    command = resume_command(run)
    sys.stdout.write(f"llmtune {shlex.join(command)}\n")
    sys.stdout.flush()
    return run_stage(command[0], command[1:])


def _remove(run: FoundRun, args: RunsArguments) -> int:
    size = sum(file.stat().st_size for file in run.folder.rglob("*") if file.is_file())
    question = f"Delete {run.folder} with all its checkpoints ({size / 1e6:,.0f} MB)? [y/N] "
    if not args.yes and (not sys.stdin.isatty() or input(question).strip().lower() not in ("y", "yes")):
        sys.stdout.write(f"Nothing was deleted. To delete {run.name} without a question: --yes true\n")
        return 1
    remove_run(run)
    sys.stdout.write(f"Deleted {run.folder}\n")
    return 0


OF_ALL: dict[str, Callable[[RunsArguments], int]] = {"list": _list, "work": _work}
ACTIONS: dict[str, Callable[[FoundRun, RunsArguments], int | None]] = {
    "show": _show,
    "tail": _tail,
    "stop": _stop,
    "resume": _resume,
    "rm": _remove,
}
