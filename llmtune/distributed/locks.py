"""Run a block in one process per machine first while the others wait, without a process group that could time out."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from llmtune.distributed.ranks import is_distributed, local_rank, local_world_size
from llmtune.errors import LlmtuneError
from llmtune.utils.files import cache_root, write_text

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
    mark = cache_root() / "turns" / f"{_run()}-{what}"
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
            return mark.read_text()
        time.sleep(POLL_SECONDS)


def _run() -> str:
    """Return an id of this run on the machine: its address, and the launcher of its processes."""
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
