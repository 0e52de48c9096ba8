"""One run folder, one writer: a lock that the system releases when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from llmtune.errors import OutputError

__all__ = ["RunLock"]

LOCK_FILE = ".lock"


class RunLock:
    """Holds run folders, those of this process's runs alone, until it is closed.

    A POSIX lock: it is the process's own, so that data loaders that outlive a killed run do not hold it. Where the file
    system, or the platform, has none, nothing is locked.
    """

    def __init__(self) -> None:
        self._held: dict[Path, Any] = {}

    def take(self, run: Path) -> None:
        """Lock a run folder.

        Raises:
            OutputError: Another process writes there; it is named.
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
        """Release all, and leave no file."""
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
    """The open file that holds the lock; None where there can be none."""
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
                    f"{run} is written by another run{_owner(file)}. Wait for its end, or stop it: Ctrl-C or SIGTERM "
                    "lets it save."
                ) from err
            except FileNotFoundError:  # the one who held it has gone, and taken the file along
                pass
            file.close()
    except (ImportError, OSError):
        return None


def _owner(file: Any) -> str:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        file.seek(0)
        told = json.loads(file.read())
        return f" (process {told['pid']} on {told['host']}, since {told['since']})"
    return ""
