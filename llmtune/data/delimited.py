"""CSV and similar files: cells separated by commas, semicolons, tabs or bars, with a header."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from llmtune.data.files import BadLine, Located, read_lines
from llmtune.data.shapes import is_known_column
from llmtune.errors import DataError
from llmtune.utils.logging import get_logger

__all__ = ["read_delimited"]

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
