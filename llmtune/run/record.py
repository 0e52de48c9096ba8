"""The record of a run in its folder, from its first second to its last: run.yaml, run.log, status.json. No torch.

A run that ended badly is found there as well as one that trains: who watches needs nothing but the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shlex
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from llmtune import __version__
from llmtune.arguments.secrets import SECRETS
from llmtune.checkpoint import last_checkpoint, what_is_missing
from llmtune.distributed.launch import planned_processes
from llmtune.distributed.ranks import is_first
from llmtune.errors import CheckpointError, HubError, LlmtuneError, OutputError, UsageError, one_line
from llmtune.run.folder import LOCK_FILE, RunLock, absolute_paths, open_run_folder
from llmtune.run.resume import find_resumable
from llmtune.run.status import LOG_FILE, STATUS_FILE, TYPED_FILE, RunStatus, State, now, read_status
from llmtune.run.streams import logged_to
from llmtune.utils.files import read_json, write_json, write_text

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments

HANDED_OVER = "LLMTUNE_RUN_FOLDER"
"""Environment variable by which the command that becomes torchrun names its run folder to the first process."""
HEARTBEAT_SECONDS = 5.0
POLL_SECONDS = 0.5
QUICK_SECONDS = 60.0
"""Time within which a hub refuses; what fails later was a download."""

_open: list[RunRecord] = []


class RunRecord:
    """Keeps the files of a run up to date; in other processes than the first, it does nothing.

    Notes cost the training nothing: a thread writes them down, twice a second at most.

    Attributes:
        folder: The run folder; None in other processes.
        lock: Of the folder.
        resume: The checkpoint that the run resumes from, as its folder was found.
    """

    def __init__(self, folder: Path | None, lock: RunLock, status: RunStatus) -> None:
        self.folder = folder
        self.lock = lock
        self._status = status
        self._written: RunStatus | None = None
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> State:
        return self._status.state

    def note(self, **values: Any) -> None:
        """Note fields of the status. Safe in a signal handler: nothing is locked."""
        self._status = dataclasses.replace(self._status, **values)

    def note_arguments(self, args: StageArguments) -> None:
        """Note model and data, which a resumed run takes over from its checkpoint."""
        model = args.model_id_or_path or args.display_name()
        self.note(model=model, model_type=args.display_name(), dataset=list(args.dataset))

    def note_metrics(self, values: dict[str, Any]) -> None:
        """Note the numbers of a log record; earlier ones of other names stay."""
        numbers = {name: value for name, value in values.items() if type(value) in (int, float)}
        numbers = {name: value for name, value in numbers.items() if math.isfinite(value)}  # JSON has no NaN
        self.note(metrics=self._status.metrics | numbers)

    def note_checkpoints(self, *, best: Path | None) -> None:
        """Note which checkpoints there are."""
        if self.folder is None:
            return
        last = last_checkpoint(self.folder)
        self.note(
            best_checkpoint=best.name if best is not None else "",
            last_checkpoint=last.name if last is not None else "",
            resumable=last is not None and not what_is_missing(last),
        )

    def begin(self) -> None:
        """Write the status now, and keep it up to date."""
        if self.folder is None:
            return
        self.write()
        self._thread = threading.Thread(target=self._keep, name="llmtune-status", daemon=True)
        self._thread.start()

    def write(self) -> None:
        """Write the status."""
        if self.folder is not None:
            self._written = self._status
            write_json(self.folder / STATUS_FILE, dataclasses.asdict(self._status) | {"updated": now()})

    def end(self, state: State, error: str = "") -> None:
        """Write the last status."""
        self._ends.set()
        if self._thread is not None:
            self._thread.join()
        if self.folder is None:
            return
        self.note(state=state, error=error, ended=now(), eta_seconds=None)
        self.note_checkpoints(best=_existing(self.folder, self._status.best_checkpoint))
        self.write()

    def _keep(self) -> None:
        beat = time.monotonic()
        while not self._ends.wait(POLL_SECONDS):
            if self._status is self._written and time.monotonic() - beat < HEARTBEAT_SECONDS:
                continue
            beat = time.monotonic()
            with contextlib.suppress(OutputError, OSError):  # a full disk ends the run where it matters
                self.write()


def _existing(run: Path, name: str) -> Path | None:
    return run / name if name and (run / name).is_dir() else None


@contextlib.contextmanager
def recorded(args: StageArguments) -> Iterator[RunRecord]:
    """Make the run folder, or take that of the resumed run, and record the run there; within another call: the same.

    Raises:
        OutputError: The folder cannot be written, or another process writes there. CheckpointError: There is nothing
            to resume from.
    """
    if _open:
        yield _open[-1]
        return
    with RunLock() as lock, contextlib.ExitStack() as stack:
        made = _missing(Path(args.output_dir) / ("" if args.output_dir_flat else args.display_name()))
        folder, is_new = _folder_of(args, lock)
        former = read_json(folder / STATUS_FILE) if folder is not None else {}
        if is_new and folder is not None and not args.output_dir_flat:
            made = [folder, *made]
        record, began = RunRecord(folder, lock, _first_status(args, folder)), time.monotonic()
        log = (folder or _handed_over() or Path()) / LOG_FILE
        file = stack.enter_context(logged_to(log)) if folder is not None or log.is_file() else None
        _open.append(record)
        try:
            if folder is not None and is_new:
                write_text(folder / TYPED_FILE, typed_yaml(args))
            if file is not None and folder is not None:
                file.write(f"--- {now()} {shlex.join(_command())}\n")
            record.begin()
            with _stoppable():
                yield record
            record.end("stopped" if record.state == "stopping" else "finished")
        except BaseException as err:
            refused = _is_refusal(err, record.state, time.monotonic() - began)
            record.end(*_ending(err))
            _log_error(file, err)
            if folder is not None and refused:
                _undo(folder, made, former)
            raise
        finally:
            _open.remove(record)


def hand_over_folder(args: StageArguments) -> None:
    """Make the run folder in the command that becomes torchrun, and name it to the first process of the run."""
    if os.environ.get("NODE_RANK", "0") != "0":
        return
    with RunLock() as lock:
        folder, is_new = _folder_of(args, lock)
        assert folder is not None
        if is_new:  # a run that is resumed keeps its status until the resumption is accepted
            write_text(folder / TYPED_FILE, typed_yaml(args))
            RunRecord(folder, lock, _first_status(args, folder)).write()
    os.environ[HANDED_OVER] = str(folder)


def _folder_of(args: StageArguments, lock: RunLock) -> tuple[Path | None, bool]:
    """The run folder, locked, and whether it is new; None in other processes than the first."""
    if not is_first():
        return None, False
    if (given := _handed_over()) is not None:
        lock.take(given)
        return given, False
    resume = find_resumable(args, log=False)
    return open_run_folder(args, resume, lock), resume is None


def _handed_over() -> Path | None:
    """The run folder that the command that became torchrun has made; None where this is no process of it."""
    given = os.environ.get(HANDED_OVER, "") if "LOCAL_RANK" in os.environ else ""
    return Path(given) if given and Path(given).is_dir() else None


def _first_status(args: StageArguments, folder: Path | None) -> RunStatus:
    import psutil

    former = (read_status(folder) if folder is not None else None) or RunStatus()
    process = psutil.Process() if _handed_over() is None else psutil.Process(os.getppid())  # torchrun passes signals on
    return dataclasses.replace(
        former,
        state="preparing",
        stage=args.STAGE,
        name=folder.name if folder is not None else "",
        model=former.model or args.model_id_or_path or args.display_name(),
        model_type=former.model_type or args.display_name(),
        dataset=former.dataset or list(args.dataset),
        eta_seconds=None,
        error="",
        ended="",
        pid=process.pid,
        pid_started=process.create_time(),
        host=socket.gethostname(),
        processes=planned_processes(args.nproc, os.environ) or 1,
        gpus=os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if os.environ.get("CUDA_VISIBLE_DEVICES") else [],
        cwd=os.getcwd(),
        argv=_command(),
        started=former.started or now(),
        version=__version__,
    )


def _command() -> list[str]:
    """The command line, as a person would type it."""
    program = Path(sys.argv[0]).name if sys.argv else ""
    if program in ("llmtune", "__main__.py", "-m", "-c"):
        return ["llmtune", *sys.argv[1:]]
    return list(sys.argv)


def typed_yaml(args: StageArguments) -> str:
    """The arguments that were given, for --config; without secrets, and with paths that hold in every folder."""
    import yaml

    stage = type(args).of_stage()
    fields = [item.name for item in dataclasses.fields(stage) if item.init]
    given = {name: getattr(args, name) for name in fields if name in args.given and name not in SECRETS}
    head = f"# {shlex.join(_command())}\n# To repeat it: llmtune {args.STAGE} --config {TYPED_FILE}\n"
    text = yaml.safe_dump(absolute_paths(given), allow_unicode=True, sort_keys=False, default_flow_style=False)
    return f"{head}_stage: {args.STAGE}\n{text if given else ''}"


def _ending(err: BaseException) -> tuple[State, str]:
    if isinstance(err, KeyboardInterrupt):
        return "stopped", ""
    if isinstance(err, LlmtuneError):
        return "failed", one_line(err, 1000)
    if isinstance(err, SystemExit):
        return "failed", f"It exited with status {err.code}."
    return "failed", f"{type(err).__name__}: {one_line(err)} The traceback is in {LOG_FILE}."


def _log_error(file: TextIO | None, err: BaseException) -> None:
    """The traceback goes into the log, whatever the terminal shows."""
    if file is not None and not isinstance(err, KeyboardInterrupt):
        with contextlib.suppress(OSError):
            lines = traceback.format_exception(err)
            file.write("".join(lines) if not isinstance(err, LlmtuneError) else f"llmtune: {err}\n")


def _is_refusal(err: BaseException, state: State, seconds: float) -> bool:
    """Whether a run was refused before it did anything; a download that took a while counts as work."""
    if state == "preparing":
        return isinstance(err, LlmtuneError) and not (isinstance(err, HubError) and seconds > QUICK_SECONDS)
    return state == "encoding" and isinstance(err, UsageError | CheckpointError)


def _missing(folder: Path) -> list[Path]:
    """The folders of a path that do not exist, innermost first."""
    folder = folder.expanduser().resolve()
    return [place for place in (folder, *folder.parents) if not place.exists()]


def _undo(folder: Path, made: list[Path], former: dict[str, Any]) -> None:
    """Leave no trace of a start that was refused: a typo is not a run.

    Args:
        made: Folders that were made for it, innermost first. former: The status that the run had; empty for a new run.
    """
    if former:
        write_json(folder / STATUS_FILE, former)
        return
    ours = {STATUS_FILE, LOG_FILE, TYPED_FILE}
    if {file.name for file in folder.iterdir() if not file.name.startswith(".")} <= ours:
        for name in (*ours, LOCK_FILE):
            (folder / name).unlink(missing_ok=True)
        for place in made:
            with contextlib.suppress(OSError):  # others write there
                place.rmdir()


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM end the run in order before training begins, from where `Interrupt` takes over."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # a caller's own stays
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
