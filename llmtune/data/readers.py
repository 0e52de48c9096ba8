"""Any data file -> rows with their locations, read as a stream.

A row that cannot be read comes out as a `BadLine` in its place, so that the caller can count it; a file that
cannot be read raises. `json_stream` holds the JSON layouts.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

from llmtune.errors import DataError
from llmtune.utils.logging import get_logger

__all__ = ["EXTENSIONS", "BadLine", "Located", "data_files", "extension_of", "has_data_extension", "read_rows"]

EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
"""What can be read; each also with `.gz` behind it."""

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class BadLine:
    """Stands in the place of a row that cannot be read. `text`: the start of what stood there."""

    reason: str
    text: str = ""


Located: TypeAlias = "tuple[str, dict[str, Any] | BadLine]"


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


def data_files(path: Path) -> list[Path]:
    """The files that `read_rows` would read.

    Raises:
        DataError: Nothing is there, or nothing that can be read.
    """
    if path.is_dir():
        inside = [file for file in sorted(path.rglob("*")) if file.is_file()]
        inside = [file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        chosen = [file for file in inside if has_data_extension(file)]
        if not chosen:
            raise DataError(f"The folder {path} holds no data file. Supported: {', '.join(EXTENSIONS)}, also with .gz.")
        if others := [str(file.relative_to(path)) for file in inside if file not in set(chosen)]:
            named = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            get_logger().info(f"{path}: {len(chosen)} data files; {len(others)} of other kinds are not read ({named})")
        return chosen
    if not path.exists():
        raise DataError(_missing_message(path))
    if not has_data_extension(path):
        shown = f"the extension {path.suffix!r}" if path.suffix else "no extension"
        raise DataError(
            f"{path} has {shown}, which cannot be read. Rename it to one of {', '.join(EXTENSIONS)} (also with .gz)."
        )
    return [path]


def extension_of(path: Path) -> str:
    """The extension that says the format: `.jsonl` for `a.jsonl` and for `a.JSONL.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def has_data_extension(path: Path) -> bool:
    return extension_of(path) in EXTENSIONS


def _missing_message(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{path} does not exist: there is no folder {folder}. Check the path."
    near = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=1, cutoff=0.6)
    hint = f"Did you mean {folder / near[0]}?" if near else f"Check the path, or list the folder: ls {folder}"
    return f"{path} does not exist. {hint}"


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
    from llmtune.data.json_stream import read_json

    return read_json(path)


# Bytes to text


def open_bytes(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line numbers from 1 and lines with their ends, split at newlines only; a byte order mark is removed."""
    offset = 0
    with open_bytes(path) as file:
        for number, raw in enumerate(file, start=1):
            if number == 1 and raw.startswith(codecs.BOM_UTF8):
                raw, offset = raw[len(codecs.BOM_UTF8) :], len(codecs.BOM_UTF8)
            yield number, decode(raw, path, line=number, offset=offset)
            offset += len(raw)


def decode(raw: bytes, path: Path, *, line: int, offset: int) -> str:
    """UTF-8 text of a part of a file that starts at `offset` (bytes) on line `line`.

    Raises:
        DataError: A NUL byte, or bytes that are not UTF-8; names the place and the command that repairs it.
    """
    if (nul := raw.find(b"\0")) >= 0:
        wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        place = f"line {line + raw.count(10, 0, nul)}, byte {offset + nul}"
        repair = f"iconv -f UTF-16 -t UTF-8 {path}" if wide else f"tr -d '\\000' < {path}"
        raise DataError(f"{path} holds a NUL byte ({place}). Repair it: {repair} > repaired{extension_of(path)}")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as err:
        place = f"line {line + raw.count(10, 0, err.start)}, byte {offset + err.start}"
        raise DataError(
            f"{path} is not UTF-8 ({place}). Convert it, from GB18030 for instance: "
            f"iconv -f GB18030 -t UTF-8 {path} > converted{extension_of(path)}"
        ) from err


# Formats


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


def without_nulls(value: Any) -> Any:
    """Drop null members at every depth: Arrow gives each struct the fields of all the others, as nulls."""
    if isinstance(value, dict):
        return {key: without_nulls(member) for key, member in value.items() if member is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
