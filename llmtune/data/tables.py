"""Read Parquet and Arrow files in batches; where a batch cannot be read, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune.data.files import BadLine, Located, extension_of, open_bytes
from llmtune.data.values import without_nulls
from llmtune.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_table"]

BATCH_ROWS = 1000


def read_table(path: Path) -> Iterator[Located]:
    """Yield the rows of a `.parquet` or `.arrow` file, in Arrow's stream or file layout.

    Raises:
        DataError: Its bytes are broken.
    """
    import pyarrow as pa

    kind = extension_of(path).removeprefix(".")
    number = 0
    try:
        for batch in _parquet_batches(path) if kind == "parquet" else _arrow_batches(path):
            for row in _rows(batch):
                number += 1
                yield f"row {number}", row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as err:
        cause = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise DataError(f"{path} is a broken {kind} file ({cause}). Download or write it again.") from err


def _source(path: Path) -> Any:
    import pyarrow as pa

    if path.suffix.lower() != ".gz":
        return str(path)
    with open_bytes(path) as file:
        return pa.BufferReader(file.read())


def _parquet_batches(path: Path) -> Iterable[pa.RecordBatch]:
    import pyarrow.parquet as pq

    batches: Iterable[pa.RecordBatch] = pq.ParquetFile(_source(path)).iter_batches(batch_size=BATCH_ROWS)
    return batches


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    if not path.stat().st_size:
        return
    source = _source(path)
    opened = pa.memory_map(source) if isinstance(source, str) else source
    try:
        reader = pa.ipc.open_stream(opened)
        batches: Iterable[pa.RecordBatch] = iter(reader)
    except pa.ArrowInvalid:
        opened.seek(0)
        file = pa.ipc.open_file(opened)
        batches = (file.get_batch(index) for index in range(file.num_record_batches))
    for batch in batches:
        _validate(batch)
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def _validate(batch: pa.RecordBatch) -> None:
    """Check offsets: a damaged one would be read beyond the end of the file. Texts are decoded one by one later."""
    import pyarrow as pa

    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as err:
        if "UTF8" not in str(err):
            raise


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | BadLine]:
    try:
        rows: list[Any] = batch.to_pylist()
    except ValueError:  # text that is not UTF-8, a date outside Python's range
        rows = [_row(batch.slice(index, 1)) for index in range(batch.num_rows)]
    return (row if isinstance(row, BadLine) else without_nulls(row) for row in rows)


def _row(batch: pa.RecordBatch) -> Any:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as err:
        return BadLine("it holds text that is not UTF-8", repr(bytes(err.object[:80])))
    except ValueError as err:
        return BadLine(f"it holds a value that cannot be read: {err}")
