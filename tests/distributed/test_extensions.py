"""A lock that a killed build left does not make the next run wait for ever."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from llmtune.distributed.deepspeed import release_dead_builds

from ..waiting import until


@pytest.fixture
def lock(tmp_path) -> Path:
    folder = tmp_path / "deepspeed_shm_comm"
    folder.mkdir()
    path = folder / "lock"
    path.touch()
    return path


def age(lock: Path, seconds: float) -> None:
    os.utime(lock, (time.time() - seconds,) * 2)


def test_torch_still_needs_this():
    """When it fails, torch has the system hold the lock: llmtune/distributed/deepspeed.py can go."""
    assert "FileBaton" in cpp_extension._jit_compile.__code__.co_names


def test_left_by_a_killed_process(lock, capsys):
    age(lock, 3600)
    release_dead_builds(lock.parent.parent)
    assert not lock.exists()
    assert str(lock) in capsys.readouterr().err


@pytest.mark.medium
def test_held_by_a_live_process_however_old(lock):
    lock.unlink()
    code = (
        "import sys, time; from torch.utils.file_baton import FileBaton\n"
        "baton = FileBaton(sys.argv[1]); baton.try_acquire(); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(lock)])
    try:
        until(lock.exists)
        age(lock, 3600)
        release_dead_builds(lock.parent.parent)
        assert lock.exists()
    finally:
        owner.kill()
        owner.wait()
    release_dead_builds(lock.parent.parent)
    assert not lock.exists()


def test_young_locks_may_be_another_machines(lock, capsys):
    begun = time.monotonic()
    release_dead_builds(lock.parent.parent, longest=1)
    assert time.monotonic() - begun > 0.9
    assert "another machine" in capsys.readouterr().err
    assert not lock.exists()


def test_a_missing_build_folder_is_fine(tmp_path):
    release_dead_builds(tmp_path / "none")
