"""Where llmtune keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_root"]


def cache_root() -> Path:
    """The folder that `LLMTUNE_CACHE` names, or `~/.cache/llmtune`. It need not exist yet."""
    chosen = os.environ.get("LLMTUNE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "llmtune"
