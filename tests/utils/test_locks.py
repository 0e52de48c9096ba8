"""Locks of files: one process at a time, on several machines, and none that a killed process leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llmtune.utils import locks
from llmtune.utils.locks import hold_lock, try_lock

from ..waiting import SECONDS, until

COUNT = """
import sys, time
from pathlib import Path
from llmtune.utils import locks
machine, lock, file = sys.argv[1:]
locks.machine_id = lambda: machine
locks.POLL_SECONDS = 0.001
for _ in range(15):
    with locks.hold_lock(Path(lock)):
        number = int(Path(file).read_text())
        time.sleep(0.002)
        Path(file).write_text(str(number + 1))
"""


def test_one_process_at_a_time_on_two_machines(tmp_path):
    file = tmp_path / "count"
    file.write_text("0")
    command = [sys.executable, "-c", COUNT]
    started = [
        subprocess.Popen([*command, machine, str(tmp_path / "a.lock"), str(file)]) for machine in ("one", "two") * 2
    ]
    assert [one.wait(SECONDS) for one in started] == [0] * 4
    assert int(file.read_text()) == 4 * 15
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_a_held_lock_is_not_had_by_another(tmp_path):
    file = tmp_path / "a.lock"
    with try_lock(file) as first, try_lock(file) as second:
        assert (first, second) == (True, False)
    with try_lock(file) as again:
        assert again
    assert not file.exists()


def test_the_lock_of_a_process_that_is_gone_is_taken_over(tmp_path):
    file = tmp_path / "a.lock"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    file.write_text(f"{locks.machine_id()} {gone.pid} abc")
    with try_lock(file) as held:
        assert held
    file.write_text(f"{locks.machine_id()} {os.getpid()} abc")
    with try_lock(file) as held:
        assert not held, "its process is alive"


def test_the_lock_of_a_machine_that_is_gone_is_taken_over_once_nobody_touches_it(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(locks.time, "monotonic", lambda: now[0])
    file = tmp_path / "a.lock"
    file.write_text("elsewhere 1 abc")
    for seconds in (0, 59):
        now[0] = 100 + seconds
        with try_lock(file) as held:
            assert not held, "it may only be slow"
    os.utime(file, (5, 5))
    now[0] += 59
    with try_lock(file) as held:
        assert not held, "it was touched meanwhile, by whatever clock"
    now[0] += 61
    with try_lock(file) as held:
        assert held
    assert not file.exists()


def test_a_holder_touches_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    file = tmp_path / "a.lock"
    with try_lock(file):
        os.utime(file, (5, 5))
        until(lambda: file.stat().st_mtime > 5)


def test_a_lock_that_was_taken_over_is_not_removed_by_its_first_holder(tmp_path):
    file = tmp_path / "a.lock"
    with try_lock(file):
        file.write_text("another 1 abc")
    assert file.exists()


def test_who_waits_gets_it_next(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.001)
    file, order = tmp_path / "a.lock", []

    def wait() -> None:
        with hold_lock(file):
            order.append("second")

    with hold_lock(file):
        thread = threading.Thread(target=wait)
        thread.start()
        order.append("first")
    thread.join(SECONDS)
    assert order == ["first", "second"]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), try_lock(Path(tmp_path / "file" / "a.lock")):  # noqa: PT011
        pass
