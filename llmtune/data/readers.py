"""Read any data file as a stream of rows with their locations.

A row that cannot be read is yielded as a `BadLine`, so that the caller can count it; a file that cannot be read
raises. `json_stream` holds the JSON layouts, `delimited` CSV and similar, `tables` parquet and Arrow.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune.data.files import (
    BadLine,
    Lines,
    Located,
    Part,
    cut_lines,
    data_files,
    extension_of,
    open_bytes,
    read_lines,
    read_part,
)
from llmtune.data.json_stream import is_cut_by_lines, read_json, read_json_lines
from llmtune.data.shapes import is_known_column
from llmtune.data.values import without_nulls
from llmtune.errors import DataError
from llmtune.types import DocumentUnit
from llmtune.utils.logging import get_logger

if TYPE_CHECKING:
    import pyarrow as pa


def read_rows(path: Path, document: DocumentUnit = "line") -> Iterator[Located]:
    """Read a data file, or every data file below a folder in sorted order.

    Args:
        document: Row of a `.txt` file: each of its lines, or the whole file.

    Yields:
        A location (`line 12`, `row 12`; in a folder `part.jsonl line 12`) and the row, or a BadLine.
        Memory stays constant, apart from `.parquet.gz` and a JSON object that wraps the list of rows.

    Raises:
        DataError: A missing, empty or unknown file, or one whose bytes are broken.
    """
    return read_files(data_files(path), path if path.is_dir() else None, document)


def read_files(files: Sequence[Path], folder: Path | None = None, document: DocumentUnit = "line") -> Iterator[Located]:
    """Yield the rows of several files, named by their path in `folder`."""
    return itertools.chain.from_iterable(part() for part in parts_of(files, folder, document))


PART_BYTES = 16 << 20
"""Of a file that several processes read: some seconds of work."""


def parts_of(
    files: Sequence[Path], folder: Path | None = None, document: DocumentUnit = "line", *, cut: bool = False
) -> list[Part]:
    """Return readers of the rows of several files, one behind the other.

    Args:
        cut: Into several parts, files whose lines are read each by itself.
    """
    parts: list[Part] = []
    for file in files:
        prefix = f"{file.relative_to(folder)} " if folder is not None else ""
        if cut and _can_be_cut(file, document):
            parts += [partial(_read_cut, file, prefix, lines) for lines in cut_lines(file, PART_BYTES)]
        else:
            parts.append(partial(_read_whole, file, prefix, document))
    return parts


def _read_whole(file: Path, prefix: str, document: DocumentUnit) -> Iterator[Located]:
    count = 0
    with _explained(file):
        for location, row in _read_file(file, document):
            count += 1
            yield prefix + location, row
    if not count:
        raise DataError(f"{file} is empty: it has no rows. Give a file with at least one row.")


def _can_be_cut(file: Path, document: DocumentUnit) -> bool:
    try:
        if file.suffix.lower() == ".gz" or file.stat().st_size < 2 * PART_BYTES:
            return False
        if extension_of(file) == ".txt":
            return document == "line" and any(line.strip() for _, line in read_lines(file))
        return extension_of(file) in (".jsonl", ".ndjson", ".json") and is_cut_by_lines(file)
    except (DataError, OSError):  # which is reported when its turn comes: an earlier file may have another fault
        return False


def _read_cut(file: Path, prefix: str, lines: Lines) -> Iterator[Located]:
    found = read_part(file, lines)
    with _explained(file):
        for location, row in _text_rows(found) if extension_of(file) == ".txt" else read_json_lines(file, found):
            yield prefix + location, row


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as err:
        raise DataError(f"{path} is a broken gzip file ({err}). Download it again; check it: gzip -t {path}") from err
    except OSError as err:
        raise DataError(f"{path} cannot be read: {err.strerror or err}. Check the file and its permissions.") from err


def _read_file(path: Path, document: DocumentUnit) -> Iterator[Located]:
    extension = extension_of(path)
    if extension in (".parquet", ".arrow"):
        return read_table(path)
    if extension in (".csv", ".tsv"):
        return read_delimited(path, "\t" if extension == ".tsv" else ",")
    if extension == ".txt":
        return _text_rows(read_lines(path)) if document == "line" else _read_document(path)
    return read_json(path)


def _text_rows(lines: Iterable[tuple[int, str]]) -> Iterator[Located]:
    for number, line in lines:
        if line.strip():
            yield f"line {number}", {"text": line.rstrip("\r\n")}


def _read_document(path: Path) -> Iterator[Located]:
    """Yield the text of a file as one row, without the line breaks at its end."""
    text = "".join(line for _, line in read_lines(path)).rstrip("\r\n")
    if text.strip():
        yield "whole file", {"text": text}


# CSV and similar files: cells separated by commas, semicolons, tabs or bars, with a header


DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def read_delimited(path: Path, expected: str) -> Iterator[Located]:
    """Read the rows below a header.

    Args:
        expected: The delimiter that the extension implies; the header shows whether it is another one.
    """
    csv.field_size_limit(2**31 - 1)
    delimiter = _delimiter(path, expected)
    lines = (line for number, line in read_lines(path) if number > 1 or not _names_delimiter(line))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    skipped = int(_names_delimiter(_first_line(path)))
    while True:
        start = reader.line_num + 1 + skipped
        try:
            cells = next(reader, None)
        except csv.Error as err:
            if "unexpected end of data" in str(err):
                raise DataError(
                    f"{path}, line {start}: a quotation mark opens in this row and is never closed. Close it."
                ) from err
            yield f"line {start}", BadLine(f"not CSV: {err}")
            continue
        if cells is None:
            return
        if not any(cells):
            continue
        if header is None:
            header = [name.strip() for name in cells]
            if twice := {name for name in header if header.count(name) > 1}:
                raise DataError(f"{path}: the header names {sorted(twice)[0]!r} twice. Give each column its own name.")
        elif len(cells) > len(header):
            reason = f"{len(cells)} cells where the header has {len(header)}; quote a cell that holds a {delimiter!r}"
            yield f"line {start}", BadLine(reason, delimiter.join(cells)[:80])
        else:
            padded = [cell or None for cell in cells] + [None] * (len(header) - len(cells))
            yield f"line {start}", dict(zip(header, padded, strict=True))


def _first_line(path: Path) -> str:
    return next((line for _, line in read_lines(path) if line.strip()), "")


def _names_delimiter(line: str) -> bool:
    """`sep=;`, which Excel writes above the header."""
    return line.lower().startswith("sep=") and len(line.rstrip("\r\n")) == 5


def _delimiter(path: Path, expected: str) -> str:
    """Return the delimiter that gives the most known columns in the header, else the most columns."""
    first = _first_line(path)
    if _names_delimiter(first):
        chosen = first.rstrip("\r\n")[-1]
    else:
        counted = {mark: _split(first, mark) for mark in (expected, *DELIMITERS)}
        chosen = max(counted, key=lambda mark: (sum(map(is_known_column, counted[mark])), len(counted[mark])))
    if chosen != expected:
        get_logger().info(f"{path}: cells are separated by {DELIMITERS.get(chosen, repr(chosen))}")
    return chosen


def _split(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


# Read Parquet and Arrow files in batches; where a batch cannot be read, row by row


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
