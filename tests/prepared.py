"""Python in processes of its own that begin with everything imported.

To import torch, transformers and peft takes ten seconds of a test that trains for two. Here a server imports them once
and forks; all that follows, from the command line to the exit status, is that of `python WORD ...`.
But as in the process of the tests, trainings paint no curves and write short samples into their report.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import socket
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from .waiting import SECONDS

LLMTUNE = ("-m", "llmtune")
POLL_SECONDS = 0.02

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([
    *("llmtune.cli.stages", "llmtune.cli.checkpoints", "llmtune.stages.sft", "llmtune.inference.infer"),
    *("deepspeed", "gptqmodel.nn_modules.qlinear", "torch.utils.tensorboard"),
    *("PIL.Image", "PIL.ImageDraw", "PIL.ImageFont"),
])  # fmt: skip


@dataclass
class Started:
    """Processes of one command, and the files that they write to."""

    processes: list[BaseProcess]
    out: Path
    err: Path

    def said(self) -> str:
        return "".join(file.read_text(encoding="utf-8", errors="replace") for file in (self.out, self.err))

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + SECONDS
        while text not in self.said():
            if time.monotonic() > deadline or not any(process.is_alive() for process in self.processes):
                self.kill()  # else pytest would wait for them at its end
                raise AssertionError(f"{text!r} was not said: {self.said()[-6000:]}")
            time.sleep(POLL_SECONDS)

    def wait(self) -> int:
        """The exit status: 0 if all ended so, else that of one that failed, upon which the others are killed."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            codes = [process.exitcode for process in self.processes]
            failed = next((code for code in codes if code), 0)
            if failed or None not in codes:
                self.kill()
                return failed
            time.sleep(POLL_SECONDS)
        self.kill()
        raise AssertionError(f"not done after {SECONDS} s: {self.said()[-6000:]}")

    def check(self) -> str:
        """Wait for a good end; what was said on standard output."""
        assert self.wait() == 0, self.said()[-6000:]
        return self.out.read_text(encoding="utf-8")

    def send_signal(self, number: int) -> None:
        for process in self.processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def start(
    *words: str | Path, folder: Path, nproc: int = 1, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> Started:
    """Run `python WORDS`, a module with -m or a script; in as many processes as torchrun would.

    Args:
        folder: For what they say: said.out and said.err.
        environment: Instead of this process's own.
    """
    argv = [str(word) for word in words]
    own = dict(os.environ if environment is None else environment)
    environments = [own | variables for variables in _of_torchrun(nproc)]
    out, err = folder / "said.out", folder / "said.err"
    processes: list[Any] = []
    for file in (out, err):
        file.write_text("")
    for variables in environments:
        processes.append(_CONTEXT.Process(target=_run, args=(argv, out, err, cwd or Path.cwd(), variables)))
        processes[-1].start()
    return Started(processes, out, err)


def _of_torchrun(nproc: int) -> list[dict[str, str]]:
    if nproc == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": uuid.uuid4().hex}
    together |= {"WORLD_SIZE": str(nproc), "LOCAL_WORLD_SIZE": str(nproc)}
    return [together | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(nproc)]


SAMPLE_TOKENS = 4


def paint_nothing(sheet: Any, title: str, lines: Any, path: Path) -> Path:
    path.write_bytes(b"\x89PNG")
    return path


def _run(argv: Sequence[str], out: Path, err: Path, cwd: Path, environment: dict[str, str]) -> None:
    from llmtune.run import plot
    from llmtune.training import following, generation_eval

    for number, path in ((1, out), (2, err)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), number)
    gc.freeze()  # else each collection would look at all that was imported, and copy the memory it is in
    plot.Sheet.draw = paint_nothing  # type: ignore[method-assign, assignment]
    generation_eval.SAMPLE_TOKENS = following.WATCHED_TOKENS = SAMPLE_TOKENS
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    if argv[0] == "-m":
        sys.argv = list(argv[1:])
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(argv)
        sys.path.insert(0, str(Path(argv[0]).parent))
        runpy.run_path(argv[0], run_name="__main__")
