"""Workload of a run: largest batch, steps and tokens, from the rows or from flags only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmtune.planning.memory import Batch
from llmtune.samples.prepare import Prepared, total_steps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmtune.arguments.stage import StageArguments


ASSUMED_TRAINABLE = 0.6
"""Assumed fraction of trainable tokens without rows to count."""

ASSUMED_LENGTH = 2048
"""Assumed tokens per sample without rows and without --max_length."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Lengths of the training samples, and their fraction of trainable tokens."""

    lengths: NDArray[np.int64]
    trainable_share: float

    def cut(self, args: StageArguments) -> NDArray[np.int64]:
        """Lengths under `--max_length`, which may differ from that of encoding."""
        return self.lengths if args.max_length == -1 else np.minimum(self.lengths, args.max_length)


def rows_of(prepared: Prepared) -> Rows:
    report = prepared.train_tokens.report
    return Rows(prepared.train_tokens.lengths, report.num_trainable / max(report.num_tokens, 1))


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
    def of(cls, args: StageArguments, rows: Rows | None, ranks: int = 1) -> Workload:
        if rows is None:
            return cls._without_rows(args, ranks)
        lengths = rows.cut(args)
        batch = _largest(args, lengths, rows.trainable_share)
        total = int(lengths.sum())
        items = -(-total // args.max_length) if args.packing else len(lengths)
        steps = total_steps(items, args, ranks)
        passes = steps * args.batch_size * args.gradient_accumulation_steps * ranks / max(items, 1)
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
    if args.padding_free and not args.packing:
        return Batch(1, tokens, trainable, packed=True)
    return Batch(size, length, trainable, padded=padded and size > 1 and not args.packing, packed=args.packing)


def _padded(args: StageArguments, lengths: Any) -> int:
    """Tokens of one epoch, padding included, for one random order."""
    if args.packing:
        return int(-(-int(lengths.sum()) // args.max_length) * args.max_length)
    if args.padding_free or args.batch_size == 1:
        return int(lengths.sum())
    order = np.sort(lengths) if args.group_by_length else np.random.default_rng(args.seed).permutation(lengths)
    parts = np.array_split(order, np.arange(args.batch_size, len(order), args.batch_size))
    return sum(int(part.max()) * len(part) for part in parts)
