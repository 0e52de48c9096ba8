"""Samples encoded during training (`--streaming`), in an order that can be resumed anywhere.

Rows come in windows of a fixed number. Of each window, each process of a machine encodes one part; the samples (or
packs) of the whole are shuffled, and the next one is prepared in the background. A position in the stream is a window
and an offset: to resume there, the rows before it are read but not encoded.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from llmtune.arguments.pretraining import document_of, joins_documents
from llmtune.errors import DataError
from llmtune.samples.blocks import join_blocks
from llmtune.samples.comparisons import COMPARISONS, drawn_partners, pack_capacity, with_partner
from llmtune.samples.encode_report import EncodeReport, merged
from llmtune.samples.packing import join_rows, plan_packs
from llmtune.samples.part_exchange import PartExchange, exchange_on_this_machine
from llmtune.samples.sampler import batches_in_copies
from llmtune.samples.token_batches import layout_of, samples_of
from llmtune.templates.encode import MANY_TEXTS

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments
    from llmtune.data.streaming import RecordStream
    from llmtune.templates.chat import ChatTemplate


WINDOW_ROWS = 4096
"""Rows per window: enough to shuffle and pack well, at about 20 MB of tokens."""

PLACE_FILE = "stream.json"
"""File of the stream's position in a checkpoint."""

REPORT = b"report"
"""Key of the counts in the metadata of an encoded part."""

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
        exchange: With the processes that encode parts of each window; None: this one encodes all.
        batch_size, copies: See `batches_in_copies`.
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
        exchange: PartExchange | None = None,
        batch_size: int = 1,
        copies: int = 1,
    ) -> None:
        self.report = EncodeReport()
        self.capacity = capacity
        self._collect = join_blocks if join else _packed
        self._records = records
        self._template = template
        self._seed = seed
        self._rows = rows
        self._partners = partners
        self._exchange = PartExchange() if exchange is None else exchange
        self._batch_size, self._copies = batch_size, copies
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

    def describe(self) -> str:
        """Describe in one line who encodes what."""
        windows, count = f"windows of {self._rows:,} rows", self._exchange.count
        if count == 1:
            return f"{windows}, each encoded while the one before it is trained on"
        return f"each of the {count} processes of a machine encodes 1/{count} of the rows, in {windows}"

    def __iter__(self) -> Iterator[Sample]:
        yield from batches_in_copies(self._in_order(), self._batch_size, self._copies)

    def _in_order(self) -> Iterator[Sample]:
        first, offset = self._first
        windows = enumerate(self._windows())
        with (
            self._exchange.open() as exchange,
            ThreadPoolExecutor(1, thread_name_prefix="encode") as worker,
            contextlib.closing(exchange),
        ):
            for _ in range(first):
                next(windows)
            coming = worker.submit(self._next, windows)
            while True:
                number, samples = coming.result()
                coming = worker.submit(self._next, windows)
                self._begins.append((number + 1, self._begins[-1][1] + len(samples)))
                yield from samples[offset:]
                offset = 0

    def _next(self, windows: Iterator[tuple[int, tuple[int, list[Record]]]]) -> tuple[int, list[Sample]]:
        number, (start, records) = next(windows)
        table = self._encoded(number, start, records)
        return number, self._arranged(number, samples_of(table))

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

    def _encoded(self, number: int, start: int, records: Sequence[Record]) -> pa.Table:
        """Encode a window whose first row is row `start`, together with the other processes of the machine."""
        if number == self._first[0] + 1:  # more than a few rows: they are worth the preparation
            self._template.expect(MANY_TEXTS)
        parts = self._exchange.parts(number, records, lambda first, rows: self._encode(start + first, rows))
        reports = [EncodeReport(**json.loads(part.schema.metadata[REPORT])) for part in parts]
        self.report = merged([self.report, *reports])
        return pa.Table.from_batches([part.replace_schema_metadata() for part in parts])

    def _encode(self, start: int, records: Sequence[Record]) -> pa.RecordBatch:
        """Encode rows of which the first is row `start`, with a report on them."""
        report = EncodeReport()
        schema, encode = layout_of(records[0])
        columns = encode(list(records), self._template, start, report)
        return pa.record_batch(columns, schema=schema.with_metadata({REPORT: json.dumps(asdict(report))}))

    def _arranged(self, number: int, rows: list[Sample]) -> list[Sample]:
        """Return the samples of a window, or packs or blocks of them, in the order of training."""
        for one in rows:
            one["sample"] = one.pop("row")
        if rows and "parts" in rows[0]:
            rows = self._comparisons(number, rows)
        elif self.capacity is not None:
            rows = self._collect(rows, self.capacity)
        order = np.random.default_rng([self._seed, number]).permutation(len(rows))
        return [rows[place] for place in order]

    def _comparisons(self, number: int, found: list[Sample]) -> list[Sample]:
        """Items of comparisons, alone or in packs; their reference is computed in the step."""
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
    return StreamedSamples(
        records,
        template,
        seed=args.seed,
        capacity=capacity,
        partners=partners,
        join=join,
        exchange=exchange_on_this_machine(),
        batch_size=args.batch_size,
        copies=args.sequence_parallel_size,
    )


def _packed(samples: Sequence[Sample], capacity: int) -> list[Sample]:
    """Yield packs, each identified by its first row."""
    packs: dict[int, list[Sample]] = {}
    for sample, pack in zip(samples, plan_packs([len(one["labels"]) for one in samples], capacity), strict=True):
        packs.setdefault(int(pack), []).append(sample)
    return [join_rows(rows) | {"sample": rows[0]["sample"]} for rows in packs.values()]
