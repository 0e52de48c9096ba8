"""What the environment says about the hubs: which one, and whether it may be asked at all."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["HubOptions", "offline", "use_hf"]

TRUE = ("1", "true", "yes", "on")


@dataclass(frozen=True, slots=True)
class HubOptions:
    """Which hub is asked, and how. None everywhere: the one that the environment says, as it stands there today."""

    use_hf: bool | None = None
    revision: str | None = None
    token: str | None = None
    cache_dir: str | None = None


def use_hf(explicit: bool | None = None) -> bool:
    """Hugging Face instead of ModelScope: the flag where it is given, else LLMTUNE_USE_HF or USE_HF."""
    if explicit is not None:
        return explicit
    return _is_true("LLMTUNE_USE_HF") or _is_true("USE_HF")


def offline() -> bool:
    """Whether only what is on this machine may be used: LLMTUNE_OFFLINE, or Hugging Face's HF_HUB_OFFLINE."""
    return _is_true("LLMTUNE_OFFLINE") or _is_true("HF_HUB_OFFLINE")


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in TRUE
