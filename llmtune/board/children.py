"""The commands that the board starts: argument lists, in sessions of their own, whose output goes to files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.arguments.board import KEY_VARIABLE
from llmtune.errors import LlmtuneError, UsageError
from llmtune.run.found import FoundRun, find_runs

FOLDER = ".board"
SECONDS_TO_APPEAR = 60.0
LINE_BYTES = 1 << 26
_started: list[subprocess.Popen[bytes]] = []
"""Processes to be waited for as they end: nobody else would, and they would stay in the table of processes."""


@dataclass(frozen=True)
class Started:
    """A command that the board has started. `log`: both of its streams."""

    process: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        """The last lines of its output."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


def start(
    root: Path, argv: Sequence[str], *, environment: Mapping[str, str] | None = None, leashed: bool = False
) -> Started:
    """Start `llmtune ARGV` in the root.

    Args:
        leashed: It ends with the board, however that ends; else it outlives it.
    """
    folder = root / FOLDER / "starts"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{argv[0]}-{len(_started)}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *(["llmtune.board.leash"] if leashed else []), "llmtune", *argv],
            cwd=root,
            stdin=subprocess.PIPE if leashed else subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_environment() | dict(environment or {}),
        )
    _started.append(process)
    return Started(process, log)


def _environment() -> dict[str, str]:
    """The board's own without its key; the children run this llmtune, wherever they start."""
    import llmtune

    home = str(Path(llmtune.__file__).parents[1])
    own = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    return own | {"PYTHONPATH": os.pathsep.join([home, *filter(None, [own.get("PYTHONPATH")])])}


def reap() -> None:
    """Take note of the processes that have ended."""
    _started[:] = [process for process in _started if process.poll() is None]


async def run_of(started: Started, root: Path) -> FoundRun:
    """Wait until a started run has its folder.

    Raises:
        UsageError: It ended before: the message is its own.
    """
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while time.monotonic() < deadline:
        code = started.process.poll()
        for run in await asyncio.to_thread(find_runs, root):
            if run.status.pid == started.process.pid:
                return run
        if code is not None:
            lines = [line for line in started.said().splitlines() if line.startswith("llmtune: ")] or [started.said()]
            raise UsageError(lines[-1].removeprefix("llmtune: ") or f"It ended with status {code}.")
        await asyncio.sleep(0.1)
    raise UsageError(f"It has not started within {SECONDS_TO_APPEAR:.0f} s: see {started.log}.")


class WarmHelper:
    """The one process that answers check, plan and dry run for all pages. It is started at the first question."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._number = 0

    async def ask(self, command: str, stage: str, argv: Sequence[str]) -> dict[str, Any]:
        """Return the facts.

        Raises:
            LlmtuneError: The answer is an error: its message.
        """
        async with self._lock:
            self._number += 1
            request = {"id": self._number, "command": command, "stage": stage, "argv": list(argv)}
            for _ in range(2):  # it may have ended since the last question, having been idle
                with contextlib.suppress(ConnectionError, BrokenPipeError):
                    found = await self._exchange(request)
                    if found is not None:
                        break
                self._process = None
            else:
                raise LlmtuneError("The process that answers check and plan has ended: see the output of the board.")
        if "error" in found:
            raise LlmtuneError(str(found["error"]))
        facts: dict[str, Any] = found["facts"]
        return facts

    async def _exchange(self, request: dict[str, Any]) -> dict[str, Any] | None:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "llmtune.cli.warm"), cwd=self.root, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, limit=LINE_BYTES,
                env=_environment(),
            )  # fmt: skip
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request).encode() + b"\n")
        await stdin.drain()
        while line := await stdout.readline():
            found = json.loads(line)
            if found.get("id") == request["id"]:
                return dict(found)
        return None

    def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
