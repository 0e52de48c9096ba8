"""Arrow files of large batches: each batch of an open file takes some kilobytes, and rows are many."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

BATCH_BYTES = 1 << 23


class BatchWriter:
    """Joins batches up to BATCH_BYTES, and writes them to an Arrow file."""

    def __init__(self, writer: pa.RecordBatchWriter) -> None:
        self._writer = writer
        self._held: list[pa.RecordBatch] = []
        self._bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._held.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.Table.from_batches(self._held).combine_chunks())
        self._held, self._bytes = [], 0


@contextlib.contextmanager
def open_stream(file: Path, schema: pa.Schema) -> Iterator[BatchWriter]:
    """Write a file in Arrow's stream layout."""
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        batches = BatchWriter(writer)
        yield batches
        batches.flush()


@contextlib.contextmanager
def open_file(file: Path, schema: pa.Schema) -> Iterator[BatchWriter]:
    """Write a file in Arrow's file layout, which can be read from any batch on."""
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        batches = BatchWriter(writer)
        yield batches
        batches.flush()
