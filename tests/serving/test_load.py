"""32 clients at once for a minute: none lost, none mixed up, memory flat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from ..waiting import SECONDS, until

pytestmark = pytest.mark.slow

LOAD = Path(__file__).parents[2] / "benchmarks/serve_load.py"
GROWTH_MIB = 48
"""Allocators keep some; a server that kept its requests would grow with each of the thousands."""


def wait_for(url: str) -> None:
    def answers() -> bool:
        try:
            return httpx.get(f"{url}/health").is_success
        except httpx.HTTPError:
            return False

    until(answers)


def test_32_clients_for_a_minute(tuned):
    command = [sys.executable, "-m", "llmtune", "serve", "--ckpt_dir", str(tuned), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert server.stderr is not None
    try:
        url = next(line.split(" at ")[1].split("/v1")[0] for line in server.stderr if line.startswith("Serving "))
        wait_for(url)
        threading.Thread(target=server.stderr.read, daemon=True).start()
        asked = [
            sys.executable,
            str(LOAD),
            "--url",
            url,
            "--clients",
            "32",
            "--seconds",
            "60",
            "--pid",
            str(server.pid),
        ]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=SECONDS)
        print(done.stdout, done.stderr[-2000:])
        found = json.loads(done.stdout)
        assert done.returncode == 0, found["first_problems"]
        assert (found["failed"], found["wrong"]) == (0, 0)
        assert found["requests"] > 10 * 32
        assert found["different_answers"] > 16, "answers that were mixed up would not be seen"
        early, late = found["memory_mib"]
        assert late - early < GROWTH_MIB
    finally:
        server.terminate()
        server.wait(SECONDS)
