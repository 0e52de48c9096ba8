"""The folder of one run: output/<model_type>/v<N>-<time>, and the files written there besides checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune import __version__
from llmtune.arguments.secrets import SECRETS
from llmtune.checkpoint import has_settings, set_aside_later
from llmtune.errors import OutputError
from llmtune.utils.files import ensure_writable_folder, write_json
from llmtune.utils.seal import sealed

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments


PATHS = (
    *("model_id_or_path", "tokenizer_id_or_path", "custom_register_path", "peft_path", "reference"),
    *("dataset", "val_dataset"),
)
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets")


def new_run_folder(output_dir: str, model_type: str, *, name: str | None = None, flat: bool = False) -> Path:
    """Create the folder of a run: v<N>-<name> below its model, with the next free N.

    Args:
        name: Of the run. Default: the time.
        flat: Use `output_dir` itself as the run folder, as other tools do.

    Raises:
        OutputError: The folder is not writable, or, with `flat`, already has a run.
    """
    if flat:
        folder = Path(output_dir).expanduser().resolve()
        check_flat_folder(folder)
        ensure_writable_folder(folder, flag="--output_dir")
        return folder
    parent = Path(output_dir).expanduser().resolve() / model_type
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            numbers = [int(found.group(1)) for name in os.listdir(parent) if (found := re.match(r"v(\d+)-", name))]
            folder = parent / f"v{max(numbers, default=-1) + 1}-{name or time.strftime('%Y%m%d-%H%M%S')}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as err:
        raise OutputError(
            f"Cannot write into {parent} ({err.strerror}). Give a writable folder with --output_dir."
        ) from err


def open_run_folder(args: StageArguments, resume: Path | None, lock: RunLock) -> Path:
    """Make the folder of a run, or take that of the checkpoint that it resumes from, and hold it."""
    if resume is None:
        run = new_run_folder(args.output_dir, args.display_name(), name=args.run_name, flat=args.output_dir_flat)
    else:
        run = resume.parent
    lock.take(run)
    return run


def clear_run_folder(run: Path, resume: Path | None) -> None:
    """Remove what a killed run left unfinished, and set aside what a resumed run trains again."""
    remove_leftovers(run)
    if resume is not None:
        set_aside_later(resume)


def check_flat_folder(folder: Path) -> None:
    """Refuse a folder for `--output_dir_flat` that already has a run.

    Raises:
        OutputError: It already has a run.
    """
    if has_settings(folder):
        raise OutputError(
            f"{folder} already has a run, and --output_dir_flat true would write another into it. Resume it with "
            f"--resume_from_checkpoint {shlex.quote(str(folder))}, or choose another --output_dir."
        )


def absolute_paths(values: dict[str, Any]) -> dict[str, Any]:
    """Return arguments with the paths that exist made absolute, so that they hold in any folder."""

    def absolute(value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(item) for item in value]
        return str(Path(value).resolve()) if value is not None and Path(value).exists() else value

    return {name: absolute(value) if name in PATHS else value for name, value in values.items()}


def args_record(args: StageArguments, **resolved: Any) -> dict[str, Any]:
    """Return the resolved arguments for sft_args.json, without secrets; keys with _ describe the run."""
    import importlib.metadata  # 7 ms, which `--help` need not pay

    record = absolute_paths({name: value for name, value in dataclasses.asdict(args).items() if name not in SECRETS})
    versions = {"llmtune": __version__, "python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return sealed(record | resolved | {"_versions": versions, "_started": time.strftime("%Y-%m-%dT%H:%M:%S")})


def write_metrics(folder: Path, split: str, metrics: dict[str, Any]) -> None:
    """Write <split>_results.txt (key = value lines) and <split>_results.json."""
    from llmtune.utils.files import write_text

    write_text(folder / f"{split}_results.txt", "".join(f"{key} = {metrics[key]}\n" for key in sorted(metrics)))
    write_json(folder / f"{split}_results.json", metrics)


def remove_leftovers(run: Path) -> None:
    """Delete temporary folders that a killed run left."""
    for pattern in (".saving-*", ".pushing-*"):
        for folder in run.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


# One writer per run folder: a lock that the system releases when its process ends, however it ends


LOCK_FILE = ".lock"


class RunLock:
    """Locks run folders of this process until closed.

    A POSIX lock belongs to the process, so data loaders that outlive a killed run do not hold it. Without locks on the
    file system or platform, nothing is locked.
    """

    def __init__(self) -> None:
        self._held: dict[Path, Any] = {}

    def take(self, run: Path) -> None:
        """Lock a run folder.

        Raises:
            OutputError: Another process, which is named, writes there.
        """
        run = run.resolve()
        if run in self._held:
            return
        file = _locked_file(run)
        if file is None:
            return
        file.seek(0)
        file.truncate()
        now = time.strftime("%Y-%m-%dT%H:%M:%S")
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}))
        file.flush()
        self._held[run] = file

    def close(self) -> None:
        """Release all locks and delete their files."""
        while self._held:
            run, file = self._held.popitem()
            with contextlib.suppress(OSError):
                (run / LOCK_FILE).unlink()
            file.close()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _locked_file(run: Path) -> Any:
    """The open file that holds the lock; None if locks are not supported."""
    try:
        import fcntl

        while True:
            file = open(run / LOCK_FILE, "a+", encoding="utf-8")  # noqa: SIM115, it stays open while the run lasts
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file.fileno()), os.stat(run / LOCK_FILE)):
                    return file
            except (BlockingIOError, PermissionError) as err:
                raise OutputError(
                    f"{run} is in use by another run{_owner(file)}. Wait for it to end, or stop it: on Ctrl-C or "
                    "SIGTERM, it saves first."
                ) from err
            except FileNotFoundError:  # its holder has ended and deleted the file
                pass
            file.close()
    except (ImportError, OSError):
        return None


def _owner(file: Any) -> str:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        file.seek(0)
        owner = json.loads(file.read())
        return f" (process {owner['pid']} on {owner['host']}, since {owner['since']})"
    return ""
