"""Read any data file as a stream of rows with their locations.

A row that cannot be read is yielded as a `BadLine`, so that the caller can count it; a file that cannot be read
raises. `json_stream` holds the JSON layouts, `delimited` CSV and similar, `tables` parquet and Arrow.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llmtune.data.delimited import read_delimited
from llmtune.data.files import Located, data_files, extension_of, read_lines
from llmtune.data.json_stream import read_json
from llmtune.data.tables import read_table
from llmtune.errors import DataError

__all__ = ["read_files", "read_rows"]


def read_rows(path: Path) -> Iterator[Located]:
    """Read a data file, or every data file below a folder in sorted order.

    Yields:
        A location (`line 12`, `row 12`; in a folder `part.jsonl line 12`) and the row, or a BadLine.
        Memory stays constant, apart from `.parquet.gz` and a JSON object that wraps the list of rows.

    Raises:
        DataError: A missing, empty or unknown file, or one whose bytes are broken.
    """
    return read_files(data_files(path), path if path.is_dir() else None)


def read_files(files: Sequence[Path], folder: Path | None = None) -> Iterator[Located]:
    """Yield the rows of several files, named by their path in `folder`."""
    for file in files:
        prefix = f"{file.relative_to(folder)} " if folder is not None else ""
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
    if extension in (".parquet", ".arrow"):
        return read_table(path)
    if extension in (".csv", ".tsv"):
        return read_delimited(path, "\t" if extension == ".tsv" else ",")
    if extension == ".txt":
        return _read_text(path)
    return read_json(path)


def _read_text(path: Path) -> Iterator[Located]:
    for number, line in read_lines(path):
        if line.strip():
            yield f"line {number}", {"text": line.rstrip("\r\n")}
