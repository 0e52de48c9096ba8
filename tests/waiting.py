"""Waiting for what has to happen."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 600
"""So long that only what hangs fails by it, however busy the machine is."""


def until(condition: Callable[[], bool], poll_seconds: float = 0.02) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(poll_seconds)
