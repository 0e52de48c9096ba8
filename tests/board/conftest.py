"""Boards in processes of their own, a browser, and runs as they are on disk."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..waiting import SECONDS, until

KEY = "a-key"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
TINY = [
    "--model_type",
    "llmtune-tiny",
    "--dataset",
    "tiny-qa",
    "--gradient_accumulation_steps",
    "1",
    "--logging_steps",
    "1",
]


def run_async(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in a thread of its own: the browser's driver keeps an event loop running in this one."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(asyncio.run, work).result()


@dataclass
class Started:
    """A running board."""

    root: Path
    address: str
    process: subprocess.Popen[str]

    @property
    def entry(self) -> str:
        return f"{self.address}/?key={KEY}"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(SECONDS)


Start = Callable[..., Started]


@pytest.fixture(scope="session")
def start_board() -> Iterator[Start]:
    """(root, flags) -> a board that answers."""
    started: list[Started] = []

    def start(root: Path, *flags: str, port: int = 0) -> Started:
        command = [sys.executable, "-m", "llmtune", "board", "--root", str(root), "--port", str(port), *flags]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "LLMTUNE_BOARD_KEY": KEY},
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Board: http://127.0.0.1:"), line
        found = Started(root, line.split()[1].partition("/?")[0], process)
        started.append(found)
        return found

    yield start
    for one in started:
        one.process.terminate()
        one.process.wait(SECONDS)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield made
        made.close()


class Visitor:
    """A page of a fresh browser, which notes errors and every request that leaves this machine."""

    def __init__(self, browser: Any, board: Started, *, size: tuple[int, int], language: str = "en-US") -> None:
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, locale=language)
        self.page = self.context.new_page()
        self.page.set_default_timeout(SECONDS * 1000)
        self.board = board
        self.errors: list[str] = []
        self.strangers: list[str] = []
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda err: self.errors.append(str(err)))
        self.page.on("request", self._note)
        self.page.goto(board.entry)

    def _note(self, request: Any) -> None:
        own = (self.board.address, self.board.address.replace("http", "ws"), "data:", "blob:")
        if not request.url.startswith(own):
            self.strangers.append(request.url)

    def goto(self, path: str) -> None:
        self.page.goto(self.board.address + path)

    def check(self) -> None:
        """No error, no request to elsewhere, no sideways scrolling."""
        assert self.errors == []
        assert self.strangers == []
        wide = self.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert wide[0] <= wide[1]


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visitor]]:
    """(board, size, language) -> a visitor."""
    made: list[Visitor] = []

    def visit(board: Started, size: tuple[int, int] = (1366, 768), language: str = "en-US") -> Visitor:
        made.append(Visitor(browser, board, size=size, language=language))
        return made[-1]

    yield visit
    for one in made:
        one.context.close()


def train(root: Path, *flags: str, wait: bool = True) -> subprocess.Popen[bytes]:
    """Start a run in a root, as a person would in a terminal."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llmtune", "sft", *TINY, *flags], cwd=root, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    if wait:
        assert process.wait(SECONDS) == 0
    return process


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found


def until_state(run: Path, *states: str) -> dict[str, Any]:
    until(lambda: (run / "status.json").is_file() and status(run)["state"] in states)
    return status(run)


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with two finished runs, which differ in their learning rate."""
    root = tmp_path_factory.mktemp("two")
    steps = ["--max_steps", "6", "--eval_steps", "3", "--batch_size", "4"]
    train(root, *steps, "--run_name", "slow", "--learning_rate", "1e-5")
    train(root, *steps, "--run_name", "fast", "--learning_rate", "1e-2", "--lora_rank", "4")
    return root
