"""Other programs in place of this one, other processes, and standard streams, on every system."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import NoReturn


def can_replace() -> bool:
    """Whether a program can take over this process. Windows has execv, which starts another one and ends at once."""
    return os.name == "posix" and hasattr(os, "execve")


def replace_process(command: Sequence[str], environment: Mapping[str, str] | None = None) -> NoReturn:
    """Let a program take over this process; where the system cannot, run it and exit with its status.

    Args:
        command: The program, by path or name, and its arguments.
        environment: Its environment; this process's own by default.
    """
    program = shutil.which(command[0]) or command[0]
    values = dict(os.environ if environment is None else environment)
    sys.stdout.flush()
    sys.stderr.flush()
    if can_replace():
        os.execve(program, list(command), values)
    with subprocess.Popen([program, *command[1:]], env=values) as child:
        raise SystemExit(_status_of(child))


def _status_of(child: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            status = child.wait()
        except KeyboardInterrupt:  # the terminal sends it to both: the child ends as it does on Ctrl-C
            continue
        return status if status >= 0 else 128 - status


def can_fork() -> bool:
    """Whether this process may fork helpers, which share the memory of what is loaded."""
    import multiprocessing  # 10 ms, which `--help` need not pay

    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def end_with_parent() -> None:
    """Let this forked process end on SIGTERM, whatever handler it was forked with, and when its parent is gone."""
    import multiprocessing

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="llmtune-parent", daemon=True).start()


def write_any_text() -> None:
    """Let the standard streams write what their encoding lacks as escapes: on Windows, files and pipes are cp1252."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_alive(process: int) -> bool:
    """Whether a process of this machine runs. `os.kill(process, 0)`, the usual question, is Ctrl-C on Windows."""
    import psutil

    try:
        return bool(psutil.pid_exists(process))
    except OverflowError:
        return True
