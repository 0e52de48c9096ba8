"""Workload of a run, from the rows or from flags only: largest batch, steps, tokens; its sharding over devices."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.integrations.accelerate import get_balanced_memory, infer_auto_device_map

from llmtune.arguments.online import OnlineStage
from llmtune.distributed.deepspeed import deepspeed_file, read_deepspeed, zero_stage
from llmtune.distributed.ranks import local_world_size
from llmtune.samples.prepare import Prepared, total_steps
from llmtune.samples.prompts import PromptSamples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmtune.arguments.stage import StageArguments


ASSUMED_TRAINABLE = 0.6
"""Assumed fraction of trainable tokens without rows to count."""

ASSUMED_LENGTH = 2048
"""Assumed tokens per sample without rows and without --max_length."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Largest batch of a run: B sequences of T tokens, K of them trainable. `packed`: sequences of several samples.

    Of processes that share their batches, the part of one.
    """

    size: int
    length: int
    trainable: int
    padded: bool = False
    packed: bool = False


@dataclass(frozen=True, slots=True)
class SampleLengths:
    """Lengths of the training samples, and their fraction of trainable tokens."""

    lengths: NDArray[np.int64]
    trainable_share: float

    def cut(self, args: StageArguments) -> NDArray[np.int64]:
        """Lengths under `--max_length`, which may differ from that of encoding."""
        return self.lengths if args.max_length == -1 else np.minimum(self.lengths, args.max_length)


def sample_lengths(prepared: Prepared) -> SampleLengths:
    report = prepared.train_tokens.report
    if isinstance(prepared.train_set, PromptSamples):
        longest = prepared.train_set.longest
        return SampleLengths(longest, prepared.train_set.response_tokens * len(longest) / int(longest.sum()))
    return SampleLengths(prepared.lengths, report.num_trainable / max(report.num_tokens, 1))


@dataclass(frozen=True, slots=True)
class Workload:
    """Workload of a whole run over all ranks.

    Attributes:
        steps: Optimizer steps; None without rows and --max_steps.
        useful: Tokens without padding. computed: with padding. contexts: see `ModelFlops.of`.
    """

    batch: Batch
    steps: int | None
    useful: int = 0
    computed: int = 0
    trainable: int = 0
    contexts: int = 0

    @classmethod
    def of(cls, args: StageArguments, rows: SampleLengths | None, ranks: int = 1) -> Workload:
        if rows is None:
            return cls._without_rows(args, args.data_ranks(ranks))
        lengths = rows.cut(args)
        batch = _largest(args, lengths, rows.trainable_share)
        total = int(lengths.sum())
        items = -(-total // args.max_length) if args.packing else len(lengths)
        places = args.num_places(items, ranks) if isinstance(args, OnlineStage) else items
        steps = total_steps(places, args, ranks)
        passes = steps * args.step_size(ranks) / max(items, 1)
        padded = _padded(args, lengths)
        return cls(
            batch,
            steps,
            useful=round(total * passes),
            computed=round(padded * passes),
            trainable=round(total * rows.trainable_share * passes),
            contexts=round(float((lengths * (lengths + 1) / 2).sum()) * padded / max(total, 1) * passes),
        )

    @classmethod
    def _without_rows(cls, args: StageArguments, ranks: int) -> Workload:
        length = args.max_length if args.max_length > 0 else ASSUMED_LENGTH
        tokens = args.batch_size * length
        batch = _batch(args, args.batch_size, length, tokens, ASSUMED_TRAINABLE)
        if args.max_steps <= 0:
            return cls(batch, None)
        all_tokens = tokens * args.gradient_accumulation_steps * args.max_steps * ranks
        trainable = round(all_tokens * ASSUMED_TRAINABLE)
        return cls(batch, args.max_steps, all_tokens, all_tokens, trainable, all_tokens * (length + 1) // 2)


def _largest(args: StageArguments, lengths: Any, trainable_share: float) -> Batch:
    """The largest batch: in random order, the longest samples may share one."""
    longest = np.sort(lengths)[::-1][: args.batch_size]
    if args.packing:
        return _batch(args, args.batch_size, args.max_length, args.batch_size * args.max_length, trainable_share)
    tokens = int(longest.sum())
    return _batch(args, len(longest), int(longest[0]), tokens, trainable_share, padded=bool(longest[-1] != longest[0]))


def _batch(
    args: StageArguments, size: int, length: int, tokens: int, trainable_share: float, *, padded: bool = True
) -> Batch:
    trainable = math.ceil(tokens * trainable_share)
    if (parts := args.sequence_parallel_size) > 1:
        return Batch(1, -(-tokens // parts), -(-trainable // parts), packed=True)
    if args.is_padding_free:
        return Batch(1, tokens, trainable, packed=True)
    return Batch(size, length, trainable, padded=padded and size > 1 and not args.packing, packed=args.packing)


def _padded(args: StageArguments, lengths: Any) -> int:
    """Tokens of one epoch, padding included, for one random order."""
    if args.packing:
        return int(-(-int(lengths.sum()) // args.max_length) * args.max_length)
    if args.is_padding_free or args.batch_size == 1:
        return int(lengths.sum())
    order = np.sort(lengths) if args.group_by_length else np.random.default_rng(args.seed).permutation(lengths)
    parts = np.array_split(order, np.arange(args.batch_size, len(order), args.batch_size))
    return sum(int(part.max()) * len(part) for part in parts)


# Sharding over devices


@dataclass(frozen=True, slots=True)
class Sharding:
    """Ranks of a run, and over how many of them each part is sharded; 1: not sharded.

    `offloads_optimizer`, `offloads_weights`: kept in CPU memory. `spread`: devices over which `--device_map` spreads
    the layers of one process.
    """

    ranks: int = 1
    weights: int = 1
    gradients: int = 1
    optimizer: int = 1
    offloads_optimizer: bool = False
    offloads_weights: bool = False
    spread: int = 1


def sharding_of(args: Any, gpus: int = 0) -> Sharding:
    """Return the sharding by `--nproc`, `--fsdp`, `--deepspeed_config_path` and `--device_map`.

    Args:
        gpus: GPUs per machine, for all of its processes; without, --device_map has no effect.
    """
    nproc = int(getattr(args, "nproc", None) or 1)
    ranks = max(nproc, int(os.environ.get("WORLD_SIZE") or 1))
    if getattr(args, "device_map", None):
        return Sharding(ranks, spread=max(gpus // max(nproc, local_world_size()), 1))
    if getattr(args, "fsdp", None):
        offloads = bool(getattr(args, "fsdp_offload", False))
        return Sharding(ranks, ranks, ranks, ranks, offloads, offloads)
    path = getattr(args, "deepspeed_config_path", None)
    stage, optimizer, weights = _zero(path) if path else (0, False, False)
    return Sharding(
        ranks,
        weights=ranks if stage >= 3 else 1,
        gradients=ranks if stage >= 2 else 1,
        optimizer=ranks if stage >= 1 else 1,
        offloads_optimizer=optimizer,
        offloads_weights=weights,
    )


def _zero(path: str) -> tuple[int, bool, bool]:
    """ZeRO stage of the file, and whether it offloads optimizer and weights."""
    file = deepspeed_file(path)
    if file is None:
        return 0, False, False
    config = read_deepspeed(file).get("zero_optimization", {})
    offloaded = [
        str((config.get(name) or {}).get("device", "none")) != "none" for name in ("offload_optimizer", "offload_param")
    ]
    return zero_stage(path), *offloaded  # type: ignore[return-value]


# Balance of `--device_map auto` over devices


ENOUGH = 2**60


def fullest_share(model: Any, devices: int) -> float:
    """Return the fraction of the weights on the fullest of `devices`, by transformers' device map.

    Args:
        model: A transformers model without adapters, on the meta device.
    """
    if devices == 1:
        return 1.0
    whole = getattr(model, "_no_split_modules", None)
    memory = get_balanced_memory(model, dict.fromkeys(range(devices), ENOUGH), whole)
    placed = dict.fromkeys(range(devices), 0)
    for name, device in infer_auto_device_map(model, memory, whole).items():
        placed[device] += _size(model.get_submodule(name) if name else model)
    return max(placed.values()) / sum(placed.values())


def _size(module: Any) -> int:
    return sum(one.numel() * one.element_size() for one in module.parameters())
