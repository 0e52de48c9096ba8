"""Waiting for what has to happen."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 600
"""So long that only what hangs fails by it, however busy the machine is."""


def until(condition: Callable[[], bool], said: Callable[[], str] = str) -> None:
    """Wait. `said`: what to show where it does not happen."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, f"it did not happen: {said()}"
        time.sleep(0.02)
