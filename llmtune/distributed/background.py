"""Shards of an FSDP model, written in the background by torch's asynchronous checkpointing."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import torch.distributed as dist

__all__ = ["BackgroundSaves"]

SAVES = 2
"""Saves per checkpoint: model shards and optimizer shards. Each has its own process group, as neither waits for the
other."""


class BackgroundSaves:
    """Starts saves that run in threads, from a copy of the state in CPU memory."""

    def __init__(self) -> None:
        self._groups: list[Any] = []

    @contextlib.contextmanager
    def divert(self) -> Iterator[list[Future[Any]]]:
        """Within the block, let torch.distributed.checkpoint save in the background. Yield the pending saves.

        accelerate 1.15 has no argument for it (`save_fsdp_model`, `save_fsdp_optimizer`: `dist_cp.save`), so the
        function is another one as long as the block lasts.
        """
        dcp: Any = importlib.import_module("torch.distributed.checkpoint")
        if not self._groups:
            self._groups = [dist.new_group(backend="gloo") for _ in range(SAVES)]
        running: list[Future[Any]] = []
        save = dcp.save

        def start(state_dict: Any, **options: Any) -> None:
            running.append(dcp.async_save(state_dict, process_group=self._groups[len(running)], **options))

        dcp.save = start
        try:
            yield running
        finally:
            dcp.save = save
