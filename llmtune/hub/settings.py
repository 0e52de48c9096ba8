"""Environment variables for the hubs: which one to use, and offline mode."""

from __future__ import annotations

import os
from dataclasses import dataclass

TRUE = ("1", "true", "yes", "on")


@dataclass(frozen=True, slots=True)
class HubOptions:
    """Hub and options of downloads. All None: the hub of the environment, its default revision."""

    use_hf: bool | None = None
    revision: str | None = None
    token: str | None = None
    cache_dir: str | None = None


def use_hf(explicit: bool | None = None) -> bool:
    """Return whether to use Hugging Face instead of ModelScope: by the flag, else LLMTUNE_USE_HF or USE_HF."""
    if explicit is not None:
        return explicit
    return _is_true("LLMTUNE_USE_HF") or _is_true("USE_HF")


def offline() -> bool:
    """Return whether downloads are disabled: LLMTUNE_OFFLINE, or Hugging Face's HF_HUB_OFFLINE."""
    return _is_true("LLMTUNE_OFFLINE") or _is_true("HF_HUB_OFFLINE")


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in TRUE
