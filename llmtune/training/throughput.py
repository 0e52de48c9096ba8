"""Throughput of a run, and its waiting time for data. Sums stay on the device until read, so nothing synchronises."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from llmtune.distributed.collectives import sum_over_ranks
from llmtune.distributed.ranks import world_size
from llmtune.models.devices import gpu_of_device
from llmtune.models.flops import ModelFlops
from llmtune.samples.collate import num_useful
from llmtune.samples.sampler import FILLER
from llmtune.types import IGNORE_INDEX
from llmtune.utils.accelerator import accelerator


class Throughput(TrainerCallback):
    """Counts tokens and FLOPs over all ranks, and time on this one.

    Useful tokens exclude padding, computed ones include it, trainable ones have a label. FLOPs are the model's, see
    `llmtune.models.flops`: those of computed tokens, recomputation by checkpointing not counted.

    Args:
        flops: Of the model; without them, there is no TFLOP/s and no MFU.
        since: Start of the run by `time.perf_counter`, for the time to the first step.
        sharing: Ranks that share each batch, and count it.
    """

    def __init__(self, flops: ModelFlops | None = None, since: float | None = None, sharing: int = 1) -> None:
        self.flops = flops
        self.sharing = sharing
        self.since = time.perf_counter() if since is None else since
        self.started = self.first_step = self.last_step = 0.0
        self.tokens_per_second = 0.0
        """Useful tokens per second since the summary before the last one."""
        self._former = (0, 0.0)
        self.computed = self.steps = 0
        self.waited = self.stepping = 0.0
        self._step_began = 0.0
        self._contexts_of_padded = 0
        self._sums: Tensor | None = None

    def count(self, batch: dict[str, Tensor], samples: Tensor | None = None) -> None:
        """Count a batch. `samples`: indices of its samples, [n]; FILLER ones are not useful."""
        ids, positions = batch["input_ids"], batch.get("position_ids")
        self.computed += ids.numel()
        contexts = ids.new_zeros(())
        if positions is None or positions.ndim != 2:  # vision models have spatial positions
            self._contexts_of_padded += ids.shape[0] * ids.shape[1] * (ids.shape[1] + 1) // 2
        else:
            contexts = (positions + 1).sum()
        trainable = (batch["labels"] != IGNORE_INDEX).sum()
        # without a mask, a sample of one token is counted like padding, which has position 0
        fillers = 0 if samples is None or "attention_mask" not in batch else (samples == FILLER).sum()
        sums = torch.stack([num_useful(batch) - fillers, trainable, contexts])
        self._sums = sums if self._sums is None else self._sums + sums

    def batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the same batches and count the waiting time; a step begins with waiting for its first batch."""
        self._step_began = time.perf_counter()
        return _Timed(self, batches)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.started = self._step_began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.last_step = time.perf_counter()
        self.first_step = self.first_step or self.last_step
        self.stepping += self.last_step - self._step_began
        self._step_began = self.last_step
        self.steps += 1

    @property
    def seconds(self) -> float:
        return max(self.last_step - self.started, 1e-9)

    @property
    def useful(self) -> int:
        return self._sum(0)

    @property
    def trainable(self) -> int:
        return self._sum(1)

    @property
    def done(self) -> float:
        """FLOPs of this process so far."""
        if self.flops is None:
            return 0.0
        done = self.flops.of(self.computed, self.trainable, self._sum(2) + self._contexts_of_padded)
        return done / self.sharing

    def summary(self) -> dict[str, float]:
        """Return token counts, rates and shares of the steps so far. Collective: every rank has to call it.

        Tokens per second are over the whole training, evaluation and saving included; TFLOP/s and the share of waiting
        are over the steps only. `mfu`: on GPUs with a known peak.
        """
        stepping = max(self.stepping, 1e-9)
        own = [self.useful, self.computed, self.trainable, self._sum(2) + self._contexts_of_padded]
        counted = sum_over_ranks([float(value) for value in own])
        useful, computed, trainable, contexts = (int(value) // self.sharing for value in counted)
        self._note_rate(useful)
        found = {
            "useful_tokens": useful,
            "computed_tokens": computed,
            "trainable_tokens": trainable,
            "useful_tokens_per_second": round(useful / self.seconds, 1),
            "computed_tokens_per_second": round(computed / self.seconds, 1),
            "padding_share": round(1 - useful / max(computed, 1), 4),
            "trainable_share": round(trainable / max(useful, 1), 4),
            "data_wait_share": round(min(self.waited / stepping, 1.0), 4),
            "seconds_to_first_step": round(max(self.first_step - self.since, 0.0), 3),
            "peak_memory_gib": round(peak_memory_gib(), 3),
        }
        if self.flops is not None:
            speed = self.flops.of(computed, trainable, contexts) / stepping / 1e12
            found["tflops"] = float(f"{speed:.4g}")
            if peak := _peak_tflops():
                found["mfu"] = round(speed / peak / world_size(), 4)
        return found

    def _note_rate(self, useful: int) -> None:
        tokens, since = self._former
        if self.last_step > (since or self.started):
            self.tokens_per_second = (useful - tokens) / (self.last_step - (since or self.started))
            self._former = (useful, self.last_step)

    def _sum(self, index: int) -> int:
        return 0 if self._sums is None else int(self._sums[index])


class _Timed:
    def __init__(self, throughput: Throughput, batches: Iterator[Any]) -> None:
        self._throughput = throughput
        self._batches = batches

    def __iter__(self) -> _Timed:
        return self

    def __next__(self) -> Any:
        began = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self._throughput.waited += time.perf_counter() - began


def peak_memory_gib() -> float:
    """Peak memory of the GPU if there is one, else of this process."""
    return accelerator().peak_memory() / 2**30


def _peak_tflops() -> float:
    """Half-precision peak of this process's GPU; 0 if unknown, or without a GPU."""
    gpu = gpu_of_device(accelerator().name) if accelerator().is_gpu else None
    return gpu.tflops if gpu is not None else 0.0
