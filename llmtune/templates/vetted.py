"""Trial rendering of a third-party chat template in a process of its own, with limits on time and memory.

Jinja's sandbox protects the machine, but not from infinite loops or gigabytes of text. A template that renders a few
short conversations within the limits is trusted with the rows.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from llmtune.errors import TemplateError

TIME_LIMIT_S = 20.0
"""Seconds; far more than a few renderings take on a busy machine."""
MEMORY_LIMIT = 1 << 30
"""Bytes that the process may allocate on top of its initial memory."""
SIZE_LIMIT = 10_000_000
"""Characters of the returned texts: short conversations give a few thousand."""

STOPPED = "the tokenizer's chat template was stopped: it {}"


def vetted(render: Callable[[], Sequence[str | None]]) -> list[str | None]:
    """Return the result of `render`, run in a forked process, or here where the system cannot fork.

    Raises:
        TemplateError: It takes more than 20 seconds or a GiB, or gives ten million characters.
    """
    if not hasattr(os, "fork"):
        return list(render())
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # The child only renders and leaves by os._exit: it waits for no lock of another thread.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reading)
        _child(render, writing)
    os.close(writing)
    try:
        received = _read(reading, child)
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    found = json.loads(received) if received else {"stopped": "needs more memory than 1 GiB"}
    if "stopped" in found:
        raise TemplateError(STOPPED.format(found["stopped"]))
    return list(found["texts"])


def _child(render: Callable[[], Sequence[str | None]], writing: int) -> None:
    """Render, send the result, and exit without the parent's clean-up."""
    try:
        _limit_memory()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        found: dict[str, Any]
        try:
            texts = list(render())
            size = sum(len(text) for text in texts if text is not None)
            found = {"texts": texts}
            if size > SIZE_LIMIT:
                found = {"stopped": f"makes {size:,} characters of a few words"}
        except MemoryError:
            found = {"stopped": "needs more memory than 1 GiB"}
        with os.fdopen(writing, "w", encoding="ascii") as out:
            json.dump(found, out)
    except BaseException:
        os._exit(1)
    os._exit(0)


def _limit_memory() -> None:
    import resource

    with contextlib.suppress(OSError, ValueError):  # no /proc, or a lower limit already
        with open("/proc/self/statm", encoding="ascii") as file:
            own = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY_LIMIT, hard))


def _read(reading: int, child: int) -> bytes:
    end = time.monotonic() + TIME_LIMIT_S
    parts: list[bytes] = []
    while True:
        ready, _, _ = select.select([reading], [], [], max(end - time.monotonic(), 0))
        if not ready:
            raise TemplateError(STOPPED.format(f"takes longer than {TIME_LIMIT_S:g} seconds for a few words"))
        part = os.read(reading, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)
