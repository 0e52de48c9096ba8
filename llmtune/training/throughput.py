"""How fast a run is, and what it waits for. Nothing here makes the device wait: sums stay there until they are read."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from llmtune.distributed.collectives import sum_over_processes
from llmtune.distributed.ranks import world_size
from llmtune.models.flops import ModelFlops
from llmtune.models.gpus import card_of_device
from llmtune.samples.collate import num_useful
from llmtune.samples.sampler import FILLER
from llmtune.types import IGNORE_INDEX

__all__ = ["Throughput", "peak_memory_gib"]


class Throughput(TrainerCallback):
    """Counts tokens and operations of all processes together, and time as this one sees it.

    Useful tokens are those of samples, computed ones include padding, learned ones have a label. Operations are the
    model's, see `llmtune.models.flops`: those of computed tokens, without what checkpointing computes again.

    Args:
        flops: Of the model; None leaves out all that follows from it.
        since: When the run began, by `time.perf_counter`; the first step is told from there.
    """

    def __init__(self, flops: ModelFlops | None = None, since: float | None = None) -> None:
        self.flops = flops
        self.since = time.perf_counter() if since is None else since
        self.started = self.first_step = self.last_step = 0.0
        self.computed = self.steps = 0
        self.waited = self.stepping = 0.0
        self._step_began = 0.0
        self._contexts_of_padded = 0
        self._sums: Tensor | None = None

    def count(self, batch: dict[str, Tensor], samples: Tensor | None = None) -> None:
        """Count a batch. `samples`: indices of what it is made of, [n]; those that only fill up are no use."""
        ids, positions = batch["input_ids"], batch.get("position_ids")
        self.computed += ids.numel()
        contexts = ids.new_zeros(())
        if positions is None or positions.ndim != 2:  # a model that sees has positions in space
            self._contexts_of_padded += ids.shape[0] * ids.shape[1] * (ids.shape[1] + 1) // 2
        else:
            contexts = (positions + 1).sum()
        learned = (batch["labels"] != IGNORE_INDEX).sum()
        fillers = 0 if samples is None else (samples == FILLER).sum()
        sums = torch.stack([num_useful(batch) - fillers, learned, contexts])
        self._sums = sums if self._sums is None else self._sums + sums

    def batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; how long each lets us wait is counted, and a step begins with waiting for its first."""
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
    def learned(self) -> int:
        return self._sum(1)

    @property
    def done(self) -> float:
        """Operations of this process so far."""
        if self.flops is None:
            return 0.0
        return self.flops.of(self.computed, self.learned, self._sum(2) + self._contexts_of_padded)

    def summary(self) -> dict[str, float]:
        """Tokens in all, tokens per second, and shares, of the steps so far. Every process has to ask.

        Tokens per second are those of the whole training, evaluation and saving included; operations per second and
        the share of waiting are those of the steps alone. `mfu`: on GPUs whose peak is known.
        """
        stepping = max(self.stepping, 1e-9)
        own = [self.useful, self.computed, self.learned, self._sum(2) + self._contexts_of_padded]
        useful, computed, learned, contexts = map(int, sum_over_processes([float(value) for value in own]))
        found = {
            "useful_tokens": useful,
            "computed_tokens": computed,
            "learned_tokens": learned,
            "useful_tokens_per_second": round(useful / self.seconds, 1),
            "computed_tokens_per_second": round(computed / self.seconds, 1),
            "padding_share": round(1 - useful / max(computed, 1), 4),
            "learned_share": round(learned / max(useful, 1), 4),
            "data_wait_share": round(min(self.waited / stepping, 1.0), 4),
            "seconds_to_first_step": round(max(self.first_step - self.since, 0.0), 3),
            "peak_memory_gib": round(peak_memory_gib(), 3),
        }
        if self.flops is not None:
            speed = self.flops.of(computed, learned, contexts) / stepping / 1e12
            found["tflops"] = float(f"{speed:.4g}")
            if peak := _peak_tflops():
                found["mfu"] = round(speed / peak / world_size(), 4)
        return found

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
    """Of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 2**30)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _peak_tflops() -> float:
    """Of this process's GPU in half precision; 0 where it is not known, or there is none."""
    if not torch.cuda.is_available():
        return 0.0
    card = card_of_device(torch.cuda.get_device_name())
    return card.tflops if card is not None else 0.0
