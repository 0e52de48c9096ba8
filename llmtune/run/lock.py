"""One writer per run folder: a lock that the system releases when its process ends, however it ends."""

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
