"""Find data files, unpack archives, and decode bytes into lines of text."""

from __future__ import annotations

import codecs
import difflib
import gzip
import os
import re
import shlex
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, TypeAlias

from llmtune.errors import DataError, OutputError
from llmtune.utils.files import cache_root, publish, sweep, temporary_folder
from llmtune.utils.logging import get_logger

EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
"""Extensions that can be read, each also with `.gz`."""

CHUNK_BYTES = 1 << 20

NOT_DATA = frozenset(
    {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "configuration.json", "config.json"}
)
"""Files of a data folder that describe it, and hold no rows."""

WIDE_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


@dataclass(frozen=True, slots=True)
class BadLine:
    """Placeholder of a row that cannot be read. `text`: the start of the line."""

    reason: str
    text: str = ""


Located: TypeAlias = "tuple[str, dict[str, Any] | BadLine]"
Part: TypeAlias = "Callable[[], Iterator[Located]]"
"""Reads some of the rows of a source."""


def data_files(path: Path) -> list[Path]:
    """Return the files that `read_rows` would read: one file, or all data files of a folder.

    Raises:
        DataError: The path does not exist, or holds no data file.
    """
    if not exists(path):
        raise DataError(_missing_message(path))
    if path.is_dir():
        inside = [file for file in sorted(path.rglob("*")) if file.is_file()]
        inside = [file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        chosen = [file for file in inside if has_rows(file)]
        if not chosen:
            raise DataError(f"The folder {path} holds no data file. Supported: {', '.join(EXTENSIONS)}, also with .gz.")
        if others := [str(file.relative_to(path)) for file in inside if file not in set(chosen)]:
            named = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            get_logger().info(f"{path}: {len(chosen)} data files; {len(others)} other files are not read ({named})")
        return chosen
    if kind := _special_kind(path):
        raise DataError(
            f"{path} is {kind}, not a file, and rows are read more than once. Write them to a file first: "
            f"cat {shlex.quote(str(path))} > data.jsonl"
        )
    if not has_data_extension(path):
        shown = f"the extension {path.suffix!r}" if path.suffix else "no extension"
        raise DataError(
            f"{path} has {shown}, which cannot be read. Rename it to one of {', '.join(EXTENSIONS)} (also with .gz)."
        )
    return [path]


def exists(path: Path) -> bool:
    """Return whether a path exists; False for a name that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _special_kind(path: Path) -> str | None:
    """Name the kind of a path that is neither a file nor a folder."""
    mode = path.stat().st_mode
    kinds = (
        (stat.S_ISFIFO, "a pipe (FIFO)"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((kind for is_kind, kind in kinds if is_kind(mode)), None)


def has_rows(file: Path) -> bool:
    """Return whether a file in a folder is data, not a description of it or a file that `datasets` keeps beside it."""
    cached = extension_of(file) == ".arrow" and file.name.startswith(("cache-", "tmp"))
    return has_data_extension(file) and file.name not in NOT_DATA and not cached


def extension_of(path: Path) -> str:
    """Return the extension that gives the format: `.jsonl` for `a.jsonl` and for `a.JSONL.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def has_data_extension(path: Path) -> bool:
    return extension_of(path) in EXTENSIONS


def _missing_message(path: Path) -> str:
    folder = path.parent
    if os.path.islink(path):
        return f"{path} is a link to {os.readlink(path)}, which does not exist. Recreate the link, or give the file."
    if not exists(folder) or not folder.is_dir():
        return f"{path} does not exist: there is no folder {folder}. Check the path."
    near = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=1, cutoff=0.6)
    listed = f"Check the path, or list the folder: ls {shlex.quote(str(folder))}"
    return f"{path} does not exist. {f'Did you mean {folder / near[0]}?' if near else listed}"


def open_bytes(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line numbers from 1 and lines with their ends, split at newlines only; a byte order mark is removed."""
    with open_bytes(path) as file:
        yield from _decoded(path, file, Lines(0, sys.maxsize, 0))


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of a file: those that begin in bytes [start, stop), of which `before` lines are in front."""

    start: int
    stop: int
    before: int


def cut_lines(path: Path, size: int) -> list[Lines]:
    """Cut a file that is not packed into parts of about `size` bytes, at the ends of lines."""
    parts: list[Lines] = []
    start = before = at = count = 0
    with path.open("rb") as file:
        while chunk := file.read(min(CHUNK_BYTES, size)):
            if at + len(chunk) - start >= size and (end := chunk.rfind(b"\n") + 1):
                count += chunk.count(b"\n", 0, end)
                parts.append(Lines(start, at + end, before))
                start, before = at + end, before + count
                count = chunk.count(b"\n", end)
            else:
                count += chunk.count(b"\n")
            at += len(chunk)
    return [*parts, Lines(start, at, before)] if at > start else parts


def read_part(path: Path, part: Lines) -> Iterator[tuple[int, str]]:
    """Like `read_lines`, of a part."""
    with path.open("rb") as file:
        file.seek(part.start)
        yield from _decoded(path, file, part)


def _decoded(path: Path, file: IO[bytes], part: Lines) -> Iterator[tuple[int, str]]:
    offset = part.start
    for number, raw in enumerate(file, start=part.before + 1):
        mark = len(codecs.BOM_UTF8) if offset == 0 and raw.startswith(codecs.BOM_UTF8) else 0
        yield number, decode(raw[mark:], path, line=number, offset=offset + mark)
        offset += len(raw)
        if offset >= part.stop:
            return


def decode(raw: bytes, path: Path, *, line: int, offset: int) -> str:
    """Return the UTF-8 text of a part of a file that starts at `offset` (bytes) on line `line`.

    Raises:
        DataError: A NUL byte, or bytes that are not UTF-8; names the place and the command that fixes it.
    """
    if (nul := raw.find(b"\0")) >= 0:
        place = f"line {line + raw.count(10, 0, nul)}, byte {offset + nul}"
        wide = _wide_encoding(path)
        fault = f"is {wide}, not UTF-8" if wide else "holds a NUL byte"
        raise DataError(f"{path} {fault} ({place}). Fix it: {_repair(path, wide)}")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as err:
        place = f"line {line + raw.count(10, 0, err.start)}, byte {offset + err.start}"
        wide = _wide_encoding(path)
        guess = "" if wide else ", from GB18030 for instance"
        raise DataError(
            f"{path} is not UTF-8 ({place}). Convert it{guess}: {_repair(path, wide or 'GB18030')}"
        ) from err


def _repair(path: Path, encoding: str | None) -> str:
    """Return the command that writes a file in UTF-8; with no encoding, without its NUL bytes."""
    packed = path.suffix.lower() == ".gz"
    name = shlex.quote(str(path))
    unpacked = f"gzip -dc {name} | " if packed else ""
    if encoding is None:
        return f"{unpacked}tr -d '\\000'{'' if packed else f' < {name}'} > repaired{extension_of(path)}"
    given = "" if packed else f" {name}"
    return f"{unpacked}iconv -f {encoding} -t UTF-8{given} > converted{extension_of(path)}"


def _wide_encoding(path: Path) -> str | None:
    """Return UTF-16 or UTF-32, by the byte order mark at the start of a file, or by where its zeros are."""
    with open_bytes(path) as file:
        head = file.read(4096)
    for mark, name in WIDE_MARKS:
        if head.startswith(mark):
            return name
    parts = [head[first::4] for first in range(4)]
    zeros = [part.count(0) / max(1, len(part)) for part in parts]
    if min(zeros[2:]) > 0.9 and zeros[0] < 0.1:
        return "UTF-32LE"
    if min(zeros[:2]) > 0.9 and zeros[3] < 0.1:
        return "UTF-32BE"
    even, odd = zeros[::2], zeros[1::2]
    if min(odd) > 0.2 and max(even) < 0.1:
        return "UTF-16LE"
    if min(even) > 0.2 and max(odd) < 0.1:
        return "UTF-16BE"
    return None


# Archives, unpacked once into the cache, so that rows can name the files inside by their paths


FILE_COLUMN = ":FILE"
"""ModelScope's mark of a column whose cells name files inside the archive."""


def unpacked_folder(archive: Path) -> Path:
    """Return the folder that an archive is, or will be, unpacked into, by its content; a folder is its own."""
    if archive.is_dir():
        return archive
    state = archive.stat()
    digest = blake2b(repr((str(archive.resolve()), state.st_size, state.st_mtime_ns)).encode(), digest_size=16)
    return cache_root() / "media" / digest.hexdigest()


def unpack(archive: Path) -> Path:
    """Unpack a zip file into the cache, unless it is there; other processes may do the same meanwhile.

    Raises:
        DataError: It is not a zip file, or a broken one. OutputError: The cache cannot be written.
    """
    folder = unpacked_folder(archive)
    if archive.is_dir():
        return folder
    if not zipfile.is_zipfile(archive):
        raise DataError(
            f"{archive} is not a zip file, the only kind that llmtune unpacks. Unpack it into a folder yourself."
        )
    try:
        with zipfile.ZipFile(archive) as opened:
            if folder.is_dir():
                _repair_archive(opened, folder, archive)
            else:
                _unpack(opened, folder, archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as err:
        raise DataError(f"{archive} is a broken zip file ({err}). Download it again.") from err
    except OSError as err:
        cause = err.strerror or err
        raise OutputError(f"Cannot unpack {archive} into {folder.parent} ({cause}). Set LLMTUNE_CACHE.") from err
    return folder


def _unpack(opened: zipfile.ZipFile, folder: Path, archive: Path) -> None:
    get_logger().info(f"{archive.name}: unpacking into {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent, is_ours=True)
    with temporary_folder(folder) as temporary:
        opened.extractall(temporary)  # drops `..` and absolute names, which would lead outside
        try:
            publish(temporary, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise


def _repair_archive(opened: zipfile.ZipFile, folder: Path, archive: Path) -> None:
    """Unpack again what is missing, has another size or begins with zeros, as no picture does."""
    inside = [info for info in opened.infolist() if not info.is_dir() and ".." not in Path(info.filename).parts]
    damaged = [info for info in inside if _is_damaged(folder / info.filename.lstrip("/"), info.file_size)]
    if not damaged:
        return
    get_logger().warning(f"{archive.name}: {len(damaged):,} of its unpacked files are damaged; unpacking them again")
    with temporary_folder(folder) as temporary:
        for info in damaged:
            made = Path(opened.extract(info, temporary))
            target = folder / made.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            publish(made, target)


def _is_damaged(file: Path, size: int) -> bool:
    try:
        with file.open("rb") as opened:
            return file.stat().st_size != size or (size > 0 and not any(opened.read(64)))
    except OSError:
        return True


def with_paths(row: dict[str, Any], media: Path | None) -> dict[str, Any]:
    """Return a copy of a row whose `:FILE` columns lose the mark and hold full paths."""
    made: dict[str, Any] = {}
    for key, cell in row.items():
        marked = key.endswith(FILE_COLUMN)
        path = str(media / cell) if marked and media is not None and isinstance(cell, str) else cell
        made[key.removesuffix(FILE_COLUMN)] = path
    return made


# The split of a file, by its name and folders


SHARD = re.compile(r"^(.+?)-\d{5}-of-\d{5}")
KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}


def part_of(path: Path) -> str:
    """Return `train`, `validation` or `test`, by a file's name and folders; an empty string where they name none."""
    split = split_of(path)
    return split if split in KEYWORDS else keyword_in(split)


def split_of(path: Path) -> str:
    """Return the split that a folder, a shard or a file is named after, or an empty string."""
    for name in reversed(path.parts[:-1]):
        for split, words in KEYWORDS.items():
            if name.lower() in words:
                return split
    if shard := SHARD.match(path.name):
        return shard[1]
    names = (path.name, *reversed(path.parts[:-1]))
    return next((split for name in names if (split := keyword_in(name))), "")


def keyword_in(name: str) -> str:
    found = (split for split, words in KEYWORDS.items() if any(has_word(name, word) for word in words))
    return next(found, "")


def has_word(name: str, word: str) -> bool:
    return re.search(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", name, re.IGNORECASE) is not None
