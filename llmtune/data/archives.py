"""Archives of a dataset, unpacked once into the cache, so that rows can name the files inside by their paths."""

from __future__ import annotations

import zipfile
import zlib
from hashlib import blake2b
from pathlib import Path
from typing import Any

from llmtune.errors import DataError, OutputError
from llmtune.utils.files import cache_root, publish, sweep, temporary_folder
from llmtune.utils.logging import get_logger

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
                _repair(opened, folder, archive)
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


def _repair(opened: zipfile.ZipFile, folder: Path, archive: Path) -> None:
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
