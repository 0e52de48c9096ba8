"""Which files are data, and how their bytes become lines of text."""

from __future__ import annotations

import codecs
import difflib
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

from llmtune.errors import DataError
from llmtune.utils.logging import get_logger

__all__ = [
    "CHUNK_BYTES",
    "EXTENSIONS",
    "BadLine",
    "Located",
    "data_files",
    "decode",
    "extension_of",
    "has_data_extension",
    "open_bytes",
    "read_lines",
]

EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
"""What can be read; each also with `.gz` behind it."""

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class BadLine:
    """Stands in the place of a row that cannot be read. `text`: the start of what stood there."""

    reason: str
    text: str = ""


Located: TypeAlias = "tuple[str, dict[str, Any] | BadLine]"


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
