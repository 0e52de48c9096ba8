"""Runs below a folder, found by their files alone: whoever started them, and wherever. No torch."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.arguments.fields import on_resume, shown
from llmtune.arguments.stages import STAGES, stage_arguments
from llmtune.checkpoint import (
    has_settings,
    last_checkpoint,
    numbered_checkpoints,
    read_state,
    saved_settings,
    what_is_missing,
)
from llmtune.errors import CheckpointError, OutputError, UsageError
from llmtune.run.status import STATUS_FILE, TYPED_FILE, RunStatus, has_process, read_status
from llmtune.utils.files import read_records

DEEPEST = 4
"""Folders below the root in which runs are looked for."""
LAST = "last"
NOT_REPEATED = ("output_dir", "output_dir_flat", "run_name", "resume_from_checkpoint", "peft_path")
"""Free arguments of a run that say where it begins, which its resumption knows better."""


@dataclass(frozen=True)
class FoundRun:
    """A run folder with its status."""

    folder: Path
    status: RunStatus

    @property
    def name(self) -> str:
        """Model and run, as in its path."""
        return f"{self.folder.parent.name}/{self.folder.name}"


def find_runs(root: Path) -> list[FoundRun]:
    """Return the runs below a folder, newest first; links are not followed."""
    found = [run for folder in _run_folders(root, DEEPEST) if (run := read_run(folder)) is not None]
    return sorted(found, key=lambda run: (run.status.started, run.folder.name), reverse=True)


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / STATUS_FILE).is_file() or has_settings(folder):
        yield folder
        return
    if depth == 0:
        return
    with contextlib.suppress(OSError):
        inside = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
        for path in sorted(inside):
            if not path.name.startswith((".", "checkpoint-")):
                yield from _run_folders(path, depth - 1)


def read_run(folder: Path) -> FoundRun | None:
    """Return the run of a folder; None if it has none."""
    status = read_status(folder) or _old_status(folder)
    if status is None:
        return None
    return FoundRun(folder, status if status.is_alive else _with_checkpoint(folder, status))


def _with_checkpoint(folder: Path, status: RunStatus) -> RunStatus:
    """The status with the checkpoint that is there: a run may be killed between saving it and noting so."""
    newest = last_checkpoint(folder)
    if newest is None or newest.name == status.last_checkpoint:
        return status
    return dataclasses.replace(status, last_checkpoint=newest.name, resumable=not what_is_missing(newest))


def _old_status(folder: Path) -> RunStatus | None:
    """The status of a run that wrote none: of version 0.4 and before."""
    settings, newest = saved_settings(folder), last_checkpoint(folder)
    if not settings or newest is None:
        return None
    state = read_state(newest)
    step, max_steps = (_whole(state.get(name)) for name in ("global_step", "max_steps"))
    log = folder / "logging.jsonl"
    metrics: dict[str, Any] = {}
    for record in read_records(log) if log.is_file() else []:
        metrics |= {name: value for name, value in record.items() if isinstance(value, int | float)}
    stage = str(settings.get("_stage", "sft"))
    return RunStatus(
        state="finished" if step >= max_steps else "stopped",
        stage=stage if stage in STAGES else "sft",
        name=folder.name,
        model=str(settings.get("model_type")),
        model_type=str(settings.get("model_type")),
        dataset=[str(item) for item in settings.get("dataset") or []],
        step=step,
        max_steps=max_steps,
        metrics=metrics,
        started=str(settings.get("_started", "")),
        best_checkpoint=Path(str(state.get("best_model_checkpoint") or "")).name,
        last_checkpoint=newest.name,
        resumable=not what_is_missing(newest),
    )


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def pick_run(name: str, root: Path) -> FoundRun:
    """Return the run that a word means: a path, `last`, or the end of a run's path below the root.

    Raises:
        UsageError: There is none, or there are several.
    """
    if (Path(name).expanduser().is_dir()) and (run := read_run(Path(name).expanduser().resolve())) is not None:
        return run
    runs = find_runs(root)
    if not runs:
        raise UsageError(f"There is no run below {root}. Start one with llmtune sft, or name its folder with --root.")
    if name == LAST:
        return runs[0]
    fitting = [run for run in runs if name in (run.name, run.folder.name)]
    fitting = fitting or [run for run in runs if run.folder.name.startswith(name)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(run.name for run in (fitting or runs)[:8])
    raise UsageError(
        f"{'Several runs are called' if fitting else 'There is no run'} {name!r} below {root}: {names}"
        f"{' ...' if len(fitting or runs) > 8 else ''}. Give one of these names, or the path of a folder."
    )


# What can be done with a run


def stop_run(run: FoundRun, *, kill: bool = False) -> None:
    """Ask a run to save a checkpoint and stop, or kill it with all its processes.

    Raises:
        UsageError: It has ended, or runs on another machine.
    """
    import psutil

    status = run.status
    if not status.is_alive:
        raise UsageError(f"{run.name} is not running: it has {status.state}.")
    if status.host != socket.gethostname():
        raise UsageError(f"{run.name} runs on {status.host}: stop it there, or by its scheduler.")
    if not has_process(status):
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(status.pid)
        if not kill:
            process.send_signal(signal.SIGTERM)
            return
        for one in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def resume_command(run: FoundRun) -> list[str]:
    """Return the command line that resumes a run, without `llmtune`.

    Raises:
        CheckpointError: It has no checkpoint to resume from, or is still running.
    """
    status = run.status
    if status.is_alive:
        raise CheckpointError(f"{run.name} is still running.")
    if not any(not what_is_missing(path) for path in numbered_checkpoints(run.folder)):
        raise CheckpointError(f"{run.name} has no checkpoint to resume from. Start it anew: {shown_restart(run)}")
    return [status.stage, "--resume_from_checkpoint", str(run.folder), *_free_flags(run)]


def shown_restart(run: FoundRun) -> str:
    return f"llmtune {run.status.stage} --config {run.folder / TYPED_FILE}"


def _free_flags(run: FoundRun) -> list[str]:
    """The typed flags that belong to one start of a run, and which no checkpoint has: processes, devices."""
    typed = typed_values(run.folder)
    cls = stage_arguments(run.status.stage)
    words: list[str] = []
    for name, item in cls.__dataclass_fields__.items():
        if item.init and name in typed and name not in NOT_REPEATED and on_resume(item) == "free":
            value = typed[name]
            words += [f"--{name}", *(map(shown, value) if isinstance(value, list) else [shown(value)])]
    return words


def typed_values(folder: Path) -> dict[str, Any]:
    """Return what was typed for a run; empty where that is not known."""
    import yaml

    try:
        found = yaml.safe_load((folder / TYPED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def remove_run(run: FoundRun) -> None:
    """Delete a run folder with its checkpoints.

    Raises:
        UsageError: It is still running. OutputError: It cannot be deleted.
    """
    if run.status.is_alive:
        raise UsageError(f"{run.name} is still running: stop it first, with llmtune runs stop.")
    try:
        shutil.rmtree(run.folder)
    except OSError as err:
        raise OutputError(f"Cannot delete {run.folder}: {err.strerror}.") from err
