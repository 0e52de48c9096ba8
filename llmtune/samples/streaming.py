"""Samples encoded during training (`--streaming`), in an order that can be resumed anywhere.

Rows come in windows of a fixed number. A window is encoded as a whole, its samples (or packs) are shuffled, and the
next one is prepared in the background. A position in the stream is a window and an offset: to resume there, the rows
before it are read but not encoded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from llmtune.arguments.pretraining import document_of, joins_documents
from llmtune.data.canonical import comparison_of, from_record
from llmtune.errors import DataError
from llmtune.samples.blocks import join_blocks
from llmtune.samples.comparisons import (
    COMPARISONS,
    drawn_partners,
    pack_capacity,
    stored_comparison,
    with_partner,
)
from llmtune.samples.encode_report import EncodeReport, count_comparison
from llmtune.samples.packing import join_rows, plan_packs
from llmtune.templates.comparisons import encode_comparisons

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments
    from llmtune.data.streaming import RecordStream
    from llmtune.templates.chat import ChatTemplate


WINDOW_ROWS = 4096
"""Rows per window: enough to shuffle and pack well, at about 20 MB of tokens."""

PLACE_FILE = "stream.json"
"""File of the stream's position in a checkpoint."""

Record = dict[str, Any]
Sample = dict[str, Any]


class RestoreRandomness(TrainerCallback):
    """Restores the RNG state of a checkpoint after the stream was opened, which draws a number."""

    def __init__(self, trainer: Any, checkpoint: Path) -> None:
        self.trainer = trainer
        self.checkpoint: Path | None = checkpoint

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if self.checkpoint is not None:
            # upstream: transformers 5.23.0 transformers/trainer.py: restores the RNG state before the stream is opened
            self.trainer._load_rng_state(str(self.checkpoint))
            self.checkpoint = None


class StreamedSamples(IterableDataset[Sample]):
    """Endless samples, epoch after epoch.

    Args:
        seed: Of the order within windows.
        capacity: Tokens of a pack, or of a block; None for rows as they are.
        join: Cut blocks from the joined rows of a window instead of packing them.
        partners: Each comparison gets a response of another row of its window, see `ComparisonSamples`.
    """

    def __init__(
        self,
        records: RecordStream,
        template: ChatTemplate,
        *,
        seed: int,
        capacity: int | None,
        partners: bool = False,
        rows: int = WINDOW_ROWS,
        join: bool = False,
    ) -> None:
        self.report = EncodeReport()
        self.capacity = capacity
        self._collect = join_blocks if join else _packed
        self._records = records
        self._template = template
        self._seed = seed
        self._rows = rows
        self._partners = partners
        self._first = (0, 0)
        self._begins: list[tuple[int, int]] = [(0, 0)]  # of windows met so far: number, samples before it

    def go_on_from(self, place: dict[str, int]) -> None:
        """Start at a position of `place_after`."""
        self._first = (place["window"], place["offset"])
        self._begins = [(place["window"], place["samples"] - place["offset"])]

    def place_after(self, num_samples: int) -> dict[str, int]:
        """Return the position of the stream after this number of samples."""
        window, before = max(begin for begin in self._begins if begin[1] <= num_samples)
        return {"window": window, "offset": num_samples - before, "samples": num_samples}

    def __iter__(self) -> Iterator[Sample]:
        first, offset = self._first
        windows = enumerate(self._windows())
        for _ in range(first):
            next(windows)
        with ThreadPoolExecutor(1, thread_name_prefix="encode") as worker:
            coming = worker.submit(self._next, windows)
            while True:
                number, samples = coming.result()
                coming = worker.submit(self._next, windows)
                self._begins.append((number + 1, self._begins[-1][1] + len(samples)))
                yield from samples[offset:]
                offset = 0

    def _next(self, windows: Iterator[tuple[int, tuple[int, list[Record]]]]) -> tuple[int, list[Sample]]:
        number, (start, records) = next(windows)
        return number, self._samples(number, start, records)

    def _windows(self) -> Iterator[tuple[int, list[Record]]]:
        """Yield the number of each window's first row in its epoch, and its rows; endless."""
        while True:
            records, start = iter(self._records), 0
            before = self.report.num_samples
            encoded = self.report.num_rows
            while window := list(itertools.islice(records, self._rows)):
                yield start, window
                start += len(window)
            if self.report.num_rows > encoded and self.report.num_samples == before:
                raise DataError(f"None of {start:,} rows has trainable tokens. Inspect them with llmtune check.")

    def _samples(self, number: int, start: int, records: Sequence[Record]) -> list[Sample]:
        if "answers" in records[0]:
            return self._shuffled(number, self._comparisons(number, start, records))
        found: list[Sample] = []
        for row, encoded in enumerate(self._template.encode_rows([from_record(record) for record in records]), start):
            self.report.count(encoded, f"row {row}")
            for sample in encoded.samples if encoded.problem is None else ():
                ids, labels = np.array(sample.input_ids, np.int32), np.array(sample.labels, np.int32)
                one = {"input_ids": ids, "labels": labels, "sample": row}
                if sample.weights is not None:
                    one["loss_weights"] = np.array(sample.weights, np.float32)
                found.append(one)
        if self.capacity is not None:
            found = self._collect(found, self.capacity)
        return self._shuffled(number, found)

    def _shuffled(self, number: int, samples: Sequence[Sample]) -> list[Sample]:
        order = np.random.default_rng([self._seed, number]).permutation(len(samples))
        return [samples[place] for place in order]

    def _comparisons(self, number: int, start: int, records: Sequence[Record]) -> list[Sample]:
        """Items of comparisons, alone or in packs; their reference is computed in the step."""
        rows = [comparison_of(record) for record in records]
        found: list[Sample] = []
        for row, encoded in enumerate(encode_comparisons(rows, self._template, self._template.max_length), start):
            count_comparison(self.report, encoded, f"row {row}")
            if encoded.responses:
                found.append(stored_comparison(encoded) | {"sample": row})
        if self._partners:
            partners = drawn_partners(len(found), self._seed + number)
            found = [with_partner(one, found[at]) for one, at in zip(found, partners.tolist(), strict=True)]
        if self.capacity is None:
            return [{COMPARISONS: [one], "sample": one["sample"]} for one in found]
        packs: dict[int, list[Sample]] = {}
        sizes = [len(one["input_ids"]) for one in found]
        for one, pack in zip(found, plan_packs(sizes, max(self.capacity, *sizes)).tolist(), strict=True):
            packs.setdefault(pack, []).append(one)
        return [{COMPARISONS: rows, "sample": rows[0]["sample"]} for rows in packs.values()]


def open_stream(args: StageArguments) -> RecordStream:
    """Open the rows of `--dataset` for streaming."""
    from llmtune.data.streaming import RecordStream

    names = {"model_name": args.model_name, "model_author": args.model_author}
    return RecordStream(
        args.dataset, strict=args.strict, hub=args.hub(), kind=args.KIND, document=document_of(args), **names
    )


def stream_samples(records: RecordStream, template: ChatTemplate, args: StageArguments) -> StreamedSamples:
    """Return the samples of a stream, or packs of them with `--packing`, or blocks with `--join_documents`."""
    join = joins_documents(args)
    capacity = args.max_length if join else pack_capacity(args) if args.packing else None
    partners = args.KIND == "labels"
    return StreamedSamples(records, template, seed=args.seed, capacity=capacity, partners=partners, join=join)


def _packed(samples: Sequence[Sample], capacity: int) -> list[Sample]:
    """Yield packs, each identified by its first row."""
    packs: dict[int, list[Sample]] = {}
    for sample, pack in zip(samples, plan_packs([len(one["labels"]) for one in samples], capacity), strict=True):
        packs.setdefault(int(pack), []).append(sample)
    return [join_rows(rows) | {"sample": rows[0]["sample"]} for rows in packs.values()]
