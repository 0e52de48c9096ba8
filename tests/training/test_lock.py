"""One run folder, one writer; nobody waits for the dead, and nobody is left behind by them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmtune.errors import OutputError
from llmtune.run.folder import RunLock

from ..launched import newest, start
from ..waiting import SECONDS

HOLD = """
import sys, time
from pathlib import Path
from llmtune.run.folder import RunLock
lock = RunLock()
lock.take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_and_the_first_is_named(tmp_path, holder):
    with pytest.raises(OutputError, match=rf"in use by another run \(process {holder.pid} on .*Wait for it to end"):
        RunLock().take(tmp_path)


def test_the_lock_of_a_killed_run_is_stale(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / ".lock").exists()
    with RunLock() as lock:
        lock.take(tmp_path)
        lock.take(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_a_file_that_is_no_lock(tmp_path):
    (tmp_path / ".lock").write_text("[]")
    with RunLock() as lock:
        lock.take(tmp_path)
        assert f'"pid": {os.getpid()}' in (tmp_path / ".lock").read_text()


def test_two_resume_one_run(tmp_path, holder):
    """As sft does it: the second is refused before it reads data."""
    from llmtune import SftArguments, sft

    run = tmp_path / "output/llmtune-tiny/v0-20261129-000000"
    run.mkdir(parents=True)
    made = sft(SftArguments(
        model_type="llmtune-tiny", dataset=["tiny-qa#4"], max_steps=1, batch_size=1, gradient_accumulation_steps=1,
        eval_strategy="no", report_to=["none"], output_dir=str(tmp_path / "output"),
    )).output_dir  # fmt: skip
    assert not (made / ".lock").exists()
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(made)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    other.stdout.readline()
    try:
        with pytest.raises(OutputError, match=f"process {other.pid} "):
            sft(SftArguments(resume_from_checkpoint=str(made), dataset=["tiny-qa#4"], max_steps=2))
    finally:
        other.kill()
        other.wait()


@pytest.mark.slow
def test_processes_whose_launcher_is_killed_save_and_end(tmp_path):
    process = start(tmp_path, nproc=2, max_steps=4000, save_steps=4000, eval_strategy="no")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 3/"):
            break
    children = [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + SECONDS
    while any(is_alive(child) for child in children):
        assert time.monotonic() < deadline, "they train on, and nobody would ever stop them"
        time.sleep(0.2)
    assert len(list(newest(tmp_path).glob("checkpoint-*/rng_state_1.pth"))) == 1
    process.communicate()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
