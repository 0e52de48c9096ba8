"""Any data file -> rows with their locations, read as a stream.

A row that cannot be read comes out as a `BadLine` in its place, so that the caller can count it; a file that
cannot be read raises. `json_stream` holds the JSON layouts.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmtune.data.files import BadLine, Located, data_files, extension_of, open_bytes, read_lines
from llmtune.data.json_stream import read_json
from llmtune.data.values import without_nulls
from llmtune.errors import DataError

__all__ = ["read_rows"]


def read_rows(path: Path) -> Iterator[Located]:
    """Read a data file, or every data file below a folder in sorted order.

    Yields:
        A location (`line 12`, `row 12`; in a folder `part.jsonl line 12`) and the row, or a BadLine.
        Memory stays flat, apart from `.parquet.gz` and a JSON object that wraps the list of rows.

    Raises:
        DataError: A missing, empty or unknown file, or one whose bytes are broken.
    """
    files = data_files(path)
    for file in files:
        prefix = f"{file.relative_to(path)} " if path.is_dir() else ""
        count = 0
        with _explained(file):
            for location, row in _read_file(file):
                count += 1
                yield prefix + location, row
        if not count:
            raise DataError(f"{file} is empty: it has no rows. Give a file with at least one row.")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as err:
        raise DataError(f"{path} is a broken gzip file ({err}). Download it again; check it: gzip -t {path}") from err
    except OSError as err:
        raise DataError(f"{path} cannot be read: {err.strerror or err}. Check the file and its permissions.") from err


def _read_file(path: Path) -> Iterator[Located]:
    extension = extension_of(path)
    if extension == ".parquet":
        return _read_parquet(path)
    if extension in (".csv", ".tsv"):
        return _read_delimited(path, "\t" if extension == ".tsv" else ",")
    if extension == ".txt":
        return _read_text(path)
    return read_json(path)


def _read_text(path: Path) -> Iterator[Located]:
    for number, line in read_lines(path):
        if line.strip():
            yield f"line {number}", {"text": line.rstrip("\r\n")}


def _read_delimited(path: Path, delimiter: str) -> Iterator[Located]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((line for _, line in read_lines(path)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
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


def _read_parquet(path: Path) -> Iterator[Located]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source: Any = path
    if path.suffix.lower() == ".gz":
        with open_bytes(path) as file:
            source = pa.BufferReader(file.read())
    number = 0
    try:
        for batch in pq.ParquetFile(source).iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", without_nulls(row)
    except (pa.ArrowException, OSError) as err:
        cause = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise DataError(f"{path} is a broken parquet file ({cause}). Download or write it again.") from err
