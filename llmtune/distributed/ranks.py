"""Ranks of a run, from the environment variables of torchrun or SLURM's launch line, and taking turns on a machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from llmtune.errors import LlmtuneError
from llmtune.utils.files import cache_root, write_text

LAUNCH_VARIABLES = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID")


def rank() -> int:
    """Return the global rank."""
    return _number("RANK")


def world_size() -> int:
    """Return the number of processes, on all machines."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """Return the rank on this machine."""
    return _number("LOCAL_RANK")


def local_world_size() -> int:
    """Return the number of processes on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def launch_id() -> str:
    """Return an id shared by the processes of one launch, also after torchrun restarted them."""
    return ":".join(os.environ.get(name, "") for name in LAUNCH_VARIABLES).strip(":")


def restart_count() -> int:
    """Return how often torchrun has restarted the processes."""
    return _number("TORCHELASTIC_RESTART_COUNT")


_launcher = os.getppid()


def _remember_launcher() -> None:
    global _launcher
    _launcher = os.getppid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember_launcher)


def launcher_is_gone() -> bool:
    """Return whether the launcher of this process, such as torchrun, has died."""
    return "LOCAL_RANK" in os.environ and os.getppid() != _launcher


def is_distributed() -> bool:
    return world_size() > 1


def is_first() -> bool:
    return rank() == 0


def _number(name: str, default: int = 0) -> int:
    text = os.environ.get(name, "")
    return max(int(text), 0) if text.lstrip("-").isdigit() else default


# One process per machine first, while the others wait without a process group, which could time out


POLL_SECONDS = 0.1
RUN_VARIABLES = (
    *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "RAY_JOB_ID"),
)


@contextlib.contextmanager
def first_on_this_machine(what: str) -> Iterator[None]:
    """Run the block in the machine's first process, then in its others, which find its results in the cache.

    Args:
        what: Name of the block, unique in a run.

    Raises:
        LlmtuneError: In the others, if the block failed in the first.
    """
    if not is_distributed() or local_world_size() == 1:
        yield
        return
    mark = cache_root() / "turns" / f"{run_key()}-{what}"
    if local_rank() > 0:
        if _wait_for(mark) != "done":
            raise LlmtuneError("The first process of this machine failed; see its message.")
        yield
        return
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)  # left by an earlier run with the same address
    try:
        yield
    except BaseException:
        write_text(mark, "failed")
        raise
    write_text(mark, "done")


def _wait_for(mark: Path) -> str:
    while True:
        with contextlib.suppress(OSError):
            return mark.read_text(encoding="utf-8")
        time.sleep(POLL_SECONDS)


def run_key() -> str:
    """Return an id of this run on the machine: of its address, and of the launcher of its processes."""
    values = [os.environ.get(name, "") for name in RUN_VARIABLES]
    if os.environ.get("TORCHELASTIC_RUN_ID"):
        values.append(_birth_of(os.getppid()))
    return hashlib.blake2b("\n".join(values).encode(), digest_size=8).hexdigest()


def _birth_of(process: int) -> str:
    import psutil

    try:
        return f"{process} {psutil.Process(process).create_time()}"
    except psutil.Error:
        return str(process)
