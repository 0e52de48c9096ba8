"""The machine's first process goes first, without a process group."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from ..waiting import SECONDS

WORK = """
import sys, time
from pathlib import Path
from llmtune.errors import LlmtuneError
from llmtune.distributed.ranks import local_rank
from llmtune.distributed.ranks import first_on_this_machine
log = Path(sys.argv[1])
def say(text):
    with log.open("a") as out:
        out.write(f"{local_rank()} {text}\\n")
try:
    with first_on_this_machine("data"):
        say("begins")
        time.sleep(0.5 if local_rank() == 0 else 0)
        if sys.argv[2] == "fails" and local_rank() == 0:
            raise ValueError
        say("ends")
except LlmtuneError as err:
    say(f"is told: {err}")
"""


def run(tmp_path, what: str) -> list[str]:
    log = tmp_path / "log"
    processes = []
    for rank in (1, 0):
        environment = os.environ | {
            "LLMTUNE_CACHE": str(tmp_path / "cache"), "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1",
        }  # fmt: skip
        command = [sys.executable, "-c", WORK, str(log), what]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
        time.sleep(0.3)  # the second process is there first
    for process in processes:
        process.wait(timeout=SECONDS)
    return log.read_text().splitlines()


def test_the_first_goes_first(tmp_path):
    assert run(tmp_path, "works") == ["0 begins", "0 ends", "1 begins", "1 ends"]


def test_a_failure_is_passed_on(tmp_path):
    begins, told = run(tmp_path, "fails")
    assert begins == "0 begins"
    assert told.startswith("1 is told: The first process of this machine failed")
