"""Checkpoints of 2023 on transformers' own classes: no code of theirs is run."""

from __future__ import annotations

from llmtune.models.ports.load import (
    causal_lm_loader,
    find_port,
    native_config,
    native_target_modules,
    read_config,
)
from llmtune.models.ports.port import Port

__all__ = ["Port", "causal_lm_loader", "find_port", "native_config", "native_target_modules", "read_config"]
