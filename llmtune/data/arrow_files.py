"""Arrow files of large batches: each batch of an open file takes some kilobytes, and rows are many."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
def open_batches(
    file: Path, schema: pa.Schema, layout: Callable[..., Any] = pa.ipc.new_stream
) -> Iterator[BatchWriter]:
    """Write an Arrow file.

    Args:
        layout: `pa.ipc.new_stream`, or `pa.ipc.new_file`, which can be read from any batch on.
    """
    with pa.OSFile(str(file), "wb") as sink, layout(sink, schema) as writer:
        batches = BatchWriter(writer)
        yield batches
        batches.flush()
