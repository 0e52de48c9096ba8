"""Locks that a killed process left on an extension build: torch would wait for them forever, without a message.

torch 2.13 marks a build by a file named `lock` that it creates and removes, so that a process that is killed while it
compiles blocks every later one (https://github.com/pytorch/pytorch/issues/189245). Its owner keeps the file open
meanwhile, which tells a lock that is held from one that was left. Pull request 190543 there has the system hold the
lock; with it, nothing is done here.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from llmtune.utils.logging import get_logger

__all__ = ["release_dead_builds"]

LONGEST_BUILD_SECONDS = 300
"""Max age in seconds of another machine's lock: DeepSpeed's largest extension builds in two minutes on two cores."""
POLL_SECONDS = 0.5
LOCK_FILE = "lock"
GUARD_FILE = ".llmtune.lock"


def release_dead_builds(root: Path | None = None, longest: float = LONGEST_BUILD_SECONDS) -> None:
    """Remove locks that no process holds; wait for those that another machine may hold, on a shared file system.

    Args:
        root: The folder of extensions; None for torch's own.
        longest: Seconds after which nobody builds any more.
    """
    from torch.utils import cpp_extension

    if "FileBaton" not in cpp_extension._jit_compile.__code__.co_names:
        return
    root = Path(cpp_extension._get_build_directory("llmtune", verbose=False)).parent if root is None else root
    for lock in sorted(root.glob(f"*/{LOCK_FILE}")):
        told = False
        while (age := _age(lock)) is not None and not _is_held(lock):
            if age > longest:
                _remove(lock, longest)
            elif not told:
                get_logger().warning(
                    f"{lock} marks {lock.parent.name} as being compiled, but no process of this machine does so: "
                    f"waiting up to {longest - age:.0f} s for another machine. If there is none, remove that file."
                )
                told = True
            time.sleep(min(POLL_SECONDS, longest))


def _remove(lock: Path, longest: float) -> None:
    with _guarded(lock.parent.parent):
        age = _age(lock)
        if age is not None and age > longest and not _is_held(lock):
            lock.unlink(missing_ok=True)
            get_logger().warning(f"Removed {lock}, left by a process that was killed during compilation.")


@contextlib.contextmanager
def _guarded(root: Path) -> Iterator[None]:
    """Run one process at a time: between check and removal, no other may start a build of that name."""
    try:
        import fcntl

        file = open(root / GUARD_FILE, "a", encoding="utf-8")  # noqa: SIM115, closed below
    except (ImportError, OSError):
        yield
        return
    with file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _age(lock: Path) -> float | None:
    try:
        return time.time() - lock.stat().st_mtime
    except OSError:
        return None


def _is_held(lock: Path) -> bool:
    """Whether a process of this user and machine has the file open."""
    import psutil

    path = os.path.realpath(lock)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if any(os.path.realpath(file.path) == path for file in process.open_files()):
                return True
    return False
