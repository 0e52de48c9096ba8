"""One process at a time, among all that see a file system, on any machine.

A lock is a file that only one process can create. Its holder touches it while it works; a lock that nobody touches any
more, or whose process is gone from this machine, is that of a process that was killed, and is taken over. Locks of the
operating system (fcntl) are not used: many shared file systems have none, or keep those of a machine that is gone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from llmtune.utils.files import machine_id
from llmtune.utils.processes import is_alive

BEAT_SECONDS = 5.0
"""Between two touches of a held lock."""
STALE_SECONDS = 60.0
"""After which a lock that was not touched is that of a killed process."""
POLL_SECONDS = 0.2


@contextlib.contextmanager
def hold_lock(file: Path) -> Iterator[None]:
    """Wait for a lock, and hold it within the block."""
    while True:
        with try_lock(file) as held:
            if held:
                yield
                return
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def try_lock(file: Path) -> Iterator[bool]:
    """Hold a lock within the block if it is free, or its holder was killed; yields whether it is held.

    Whether a lock is stale shows to those who wait, and ask again and again: clocks of machines differ, so that only a
    time of the lock that does not change for STALE_SECONDS by their own clock says so.
    """
    token = f"{machine_id()} {os.getpid()} {secrets.token_hex(8)}"
    if not _create(file, token) and not (_is_stale(file) and _take_over(file) and _create(file, token)):
        yield False
        return
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(file, stop), name="llmtune-lock", daemon=True)
    beat.start()
    try:
        yield True
    finally:
        stop.set()
        beat.join()
        if _read(file) == token:
            file.unlink(missing_ok=True)


def _create(file: Path, token: str) -> bool:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w", encoding="ascii") as opened:
        opened.write(token)
    _seen.pop(file, None)
    return True


def _beat(file: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(file)


_seen: dict[Path, tuple[int, float]] = {}
"""Lock -> its time when it last changed, and when that was noticed here, by `time.monotonic`."""


def _is_stale(file: Path) -> bool:
    place, _, process = _read(file).rpartition(" ")[0].partition(" ")
    if place == machine_id() and process.isdecimal() and not is_alive(int(process)):
        return True
    try:
        touched = file.stat().st_mtime_ns
    except FileNotFoundError:
        return False
    now = time.monotonic()
    if _seen.get(file, (None,))[0] != touched:
        _seen[file] = (touched, now)
    return now - _seen[file][1] > STALE_SECONDS


def _take_over(file: Path) -> bool:
    """Remove a stale lock; False if another process was faster. Only one of them can rename it."""
    aside = file.with_name(f".{file.name}.{secrets.token_hex(4)}.stale")
    try:
        file.rename(aside)
    except FileNotFoundError:
        return False
    aside.unlink(missing_ok=True)
    _seen.pop(file, None)
    return True


def _read(file: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return file.read_text(encoding="ascii")
    return ""
