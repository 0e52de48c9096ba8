"""Flags of `llmtune env`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class EnvArguments:
    """Environment."""

    json: bool = False
    """Print JSON."""
    torch: bool = True
    """Import torch, which takes seconds, to list the GPUs."""
