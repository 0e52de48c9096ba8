"""Forked helpers end with the process that forked them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ..waiting import until

pytestmark = [pytest.mark.medium, pytest.mark.skipif(sys.platform != "linux", reason="helpers are forked on Linux")]

HELPERS = """
import multiprocessing, signal, time
from pathlib import Path
from llmtune.utils.processes import end_with_parent

def work(file):
    end_with_parent()
    file.touch()
    time.sleep(3600)

signal.signal(signal.SIGTERM, lambda *_: None)
context = multiprocessing.get_context("fork")
helpers = [context.Process(target=work, args=(Path(str(number)),), daemon=True) for number in range(3)]
for helper in helpers:
    helper.start()
while sum(Path(str(number)).exists() for number in range(3)) < 3:
    time.sleep(0.01)
print("started", flush=True)
for helper in helpers[:END]:
    helper.terminate()
helpers[0].join()
print("ended", flush=True)
time.sleep(3600)
"""


def start(folder: Path, ended: int) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A process and its three helpers, of which it ends the first ones once all work."""
    words = [sys.executable, "-c", HELPERS.replace("END", str(ended))]
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process, psutil.Process(process.pid).children()


def test_helpers_do_not_outlive_a_killed_process(tmp_path):
    process, helpers = start(tmp_path, 0)
    with process:
        process.send_signal(signal.SIGKILL)
    until(lambda: not any(helper.is_running() and helper.status() != psutil.STATUS_ZOMBIE for helper in helpers))


def test_a_helper_ends_when_it_is_told_to_whatever_its_parent_does_then(tmp_path):
    process, _ = start(tmp_path, 1)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ended\n"
        process.kill()
