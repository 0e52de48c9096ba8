"""Sampler: the order of samples depends on seed and epoch only, not on the number of processes.

A batch is taken by one process after the other. So that each gets as many, and none a sample twice, the end of an
epoch is filled up with one-token samples without a label.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback

from llmtune.arguments.stage import StageArguments
from llmtune.types import IGNORE_INDEX

FILLER = -1
"""Index of a filler sample."""

ItemT = TypeVar("ItemT")

Kind = Literal["random", "by_length", "longest_first"]

PART = 2**16
"""Indices that are Python numbers at a time: all of 10^8 rows would take 4 GB in each process."""

GROUP_STEPS = 50
"""Steps per group of samples sorted by length: enough for little padding, few enough to keep the order random."""


class Samples(Protocol):
    """A token store, or packs of it. `lengths`: tokens of each."""

    @property
    def lengths(self) -> NDArray[np.int64]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...


class Numbered(Dataset[dict[str, Any]]):
    """Samples with their own index, `sample`, and the filler."""

    def __init__(self, samples: Samples, pad_token_id: int) -> None:
        self.samples = samples
        self._filler = {
            "input_ids": np.full(1, pad_token_id, np.int32),
            "labels": np.full(1, IGNORE_INDEX, np.int32),
            "sample": FILLER,
        }

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._filler if index == FILLER else self.samples[index] | {"sample": index}


def batches_in_copies(items: Iterable[ItemT], batch_size: int, copies: int) -> Iterator[ItemT]:
    """Yield items batch by batch, each batch several times: ranks that share batches take one copy each."""
    left = iter(items)
    while batch := list(itertools.islice(left, batch_size)):
        yield from batch * copies


class EpochOrder(Sampler[int]):
    """Sampler that yields the indices of one epoch.

    Args:
        samples: What is ordered.
        kind: random; by_length, random but for steps of like length; longest_first, the same in each epoch.
        seed: Of the chance in it.
        step_size: Samples of an optimizer step, those that are of like length under by_length.
        fill_to: The pass is filled up to a multiple of that.
        batch_size, copies: See `batches_in_copies`.
    """

    def __init__(
        self,
        samples: Samples,
        kind: Kind,
        *,
        seed: int,
        step_size: int = 1,
        fill_to: int = 1,
        batch_size: int = 1,
        copies: int = 1,
    ) -> None:
        self.epoch = 0
        self._samples = samples
        self._kind = kind
        self._seed = seed
        self._step = step_size
        self._num_fillers = -len(samples) % fill_to
        self._batch_size = batch_size
        self._copies = copies

    def __len__(self) -> int:
        return (len(self._samples) + self._num_fillers) * self._copies

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        parts = (order[start : start + PART].tolist() for start in range(0, len(order), PART))
        indices = itertools.chain(itertools.chain.from_iterable(parts), itertools.repeat(FILLER, self._num_fillers))
        yield from batches_in_copies(indices, self._batch_size, self._copies)

    def _order(self) -> NDArray[np.int64]:
        if self._kind == "longest_first":
            return np.argsort(-self._samples.lengths, kind="stable")
        drawn = np.random.default_rng([self._seed, self.epoch]).permutation(len(self._samples))
        if self._kind == "random":
            return drawn
        lengths = self._samples.lengths
        steps: list[NDArray[np.int64]] = []
        for start in range(0, len(drawn), self._step * GROUP_STEPS):
            group = drawn[start : start + self._step * GROUP_STEPS]
            group = group[np.argsort(-lengths[group], kind="stable")]
            steps += np.split(group, range(self._step, len(group), self._step))
        rest = [step for step in steps if len(step) < self._step]
        whole = [step for step in steps if len(step) == self._step]
        shuffled = np.random.default_rng([self._seed, self.epoch, 1]).permutation(len(whole))
        return np.concatenate([*(whole[place] for place in shuffled), *rest])


def sample_order(args: StageArguments) -> Kind:
    """Return the kind of order of the flags."""
    if args.test_oom_error:
        return "longest_first"
    pads = not (args.packing or args.padding_free == "true" or args.sequence_parallel_size > 1)
    return "by_length" if args.group_by_length and pads else "random"


class SetEpoch(TrainerCallback):
    """Passes the epoch to the sampler; else a resumed run of several processes repeats the first epoch's order."""

    def __init__(self, order: Any) -> None:
        self.order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        steps = -(-len(train_dataloader) // args.gradient_accumulation_steps)
        # upstream: accelerate 1.15.0 accelerate/data_loader.py: set_epoch misses the sampler where a rank skips batches
        self.order.epoch = int(state.global_step // max(steps, 1))
