"""Imported by each interpreter that finds it on its path: takes away what Windows lacks, as llmtune sees it.

Other packages choose their way by os.name and sys.platform, which stay: an import of theirs, and functions that they
need, are left to them.
"""

from __future__ import annotations

import builtins
import multiprocessing
import os
import signal
import sys
from typing import Any

MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline"}
GONE = "fork forkpty execv execve execvp execvpe execl execle execlp killpg setsid posix_spawn posix_spawnp"
OURS_TO_DO_WITHOUT = (
    "uname getuid geteuid getgid getegid getpgid getpgrp fchmod chown mkfifo statvfs sysconf sched_getaffinity "
    "getloadavg nice kill"
)

real_import = builtins.__import__


def is_ours(name: Any) -> bool:
    return str(name).partition(".")[0] == "llmtune"


def lacking_import(name: str, values: Any = None, *rest: Any, **options: Any) -> Any:
    if name in MODULES and is_ours((values or {}).get("__name__")):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real_import(name, values, *rest, **options)


def lacking(name: str, function: Any) -> Any:
    def call(*args: Any, **options: Any) -> Any:
        if is_ours(sys._getframe(1).f_globals.get("__name__")):
            raise AttributeError(f"module 'os' has no attribute {name!r}")
        return function(*args, **options)

    return call


builtins.__import__ = lacking_import
for one in GONE.split():
    if hasattr(os, one):
        delattr(os, one)
for one in OURS_TO_DO_WITHOUT.split():
    if hasattr(os, one):
        setattr(os, one, lacking(one, getattr(os, one)))
if hasattr(signal, "SIGHUP"):
    del signal.SIGHUP
if "LLMTUNE_SPAWNS" not in os.environ:  # a worker is one already
    os.environ["LLMTUNE_SPAWNS"] = "1"
    multiprocessing.set_start_method("spawn")
