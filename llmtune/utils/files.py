"""Small files and folders, written atomically: they appear complete or not at all, even if the process is killed.

Data is written under a temporary name beside its target, which contains process and machine, and synced to disk before
it is renamed. Leftovers of a killed process are recognised by their names and removed by the next writer into the same
folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmtune.errors import OutputError
from llmtune.utils.processes import is_alive

FULL_BYTES = 50_000_000
"""Free bytes below which a failed write of torch is attributed to a full disk."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if there is no file, or no object in it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file, which may be growing; lines of anything else are skipped."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [record for record in found if isinstance(record, dict)]


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text; a reader sees the old file or the new one, never a part."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
            publish(temporary, path)
    except OSError as err:
        raise _cannot_write(path, err) from err


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON. Values that JSON cannot express are written as their repr."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=repr) + "\n")


def write_sealed(path: Path, text: str) -> None:
    """Write text, and beside it the seal by which `is_sealed` verifies it."""
    write_text(path, text)
    write_json(_seal_file(path), {"seal": seal_of(path)})


def is_sealed(path: Path) -> bool:
    """Return whether `write_sealed` wrote this file, and it is unchanged."""
    return is_whole(path, read_json(_seal_file(path)).get("seal"))


def _seal_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.seal")


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `target` when the block succeeds, and is removed when it fails.

    Raises:
        OutputError: `target` exists already, or the disk refuses.
    """
    if target.exists():
        raise _exists_already(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(target) as temporary:
            yield temporary
            publish(temporary, target)
    except OSError as err:
        if err.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
            raise _exists_already(target) from err
        raise _cannot_write(target, err) from err
    except Exception as err:  # safetensors and torch report a full disk by types of their own
        if not is_full_disk(err, target.parent):
            raise
        raise OutputError(
            f"Cannot write {target}: No space left on device. Free some space or choose another folder."
        ) from err


def is_full_disk(err: BaseException, folder: Path) -> bool:
    """Return whether an error of any library means that the disk of `folder` is full."""
    text = str(err)
    if getattr(err, "errno", None) == errno.ENOSPC or "No space left" in text or "os error 28" in text:
        return True
    if "inline_container" not in text and "PytorchStreamWriter" not in text:  # torch tells where it stopped, not why
        return False
    try:
        return shutil.disk_usage(folder).free < FULL_BYTES
    except OSError:
        return False


def ensure_writable_folder(path: Path, *, flag: str) -> None:
    """Create a folder and check that it is writable, before anything expensive starts."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as err:
        raise OutputError(f"Cannot write into {path} ({err.strerror}). Give a writable folder with {flag}.") from err


def link_or_copy(source: str, target: str) -> None:
    """Hard-link a file; copy it where the file system has no links, or is another one."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _exists_already(target: Path) -> OutputError:
    return OutputError(f"{target} exists already. Remove it, or choose another place.")


def _cannot_write(path: Path, err: OSError) -> OutputError:
    return OutputError(f"Cannot write {path}: {err.strerror or err}. Free some space or choose another folder.")


# llmtune's cache folder


def cache_root() -> Path:
    """Return the folder of `LLMTUNE_CACHE`, or `~/.cache/llmtune`. It may not exist yet."""
    chosen = os.environ.get("LLMTUNE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "llmtune"


# Temporary names, and the rename to the target


LEFT_SECONDS = 24 * 3600
"""Age at which temporary files of another machine, or an unknown process, count as abandoned."""

TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp", re.DOTALL)
NAME_BYTES = 150
OTHERS = 0o077
"""Access of anyone but the owner."""
CHUNK_BYTES = 1 << 20
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""Errors of file systems without fsync."""


@contextmanager
def temporary_file(target: Path) -> Iterator[Path]:
    """Yield the path of an empty file beside `target`, which is removed at the end unless published."""
    sweep(target.parent)
    path = _temporary_name(target)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`, which is removed at the end unless published."""
    sweep(target.parent)
    path = _temporary_name(target)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def publish(temporary: Path, target: Path) -> None:
    """Sync a file or folder to disk, with the usual access, and rename it to its target. A file replaces another.

    Raises:
        OSError: The disk refuses, or the target is a folder with something in it.
    """
    grant_usual_access(temporary)
    if temporary.is_dir():
        for folder, _, names in os.walk(temporary):
            for name in names:
                _sync(os.path.join(folder, name))
            _sync(folder)
    else:
        _sync(str(temporary))
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
    _sync(str(target.parent))


def grant_usual_access(path: Path) -> None:
    """Give a file, or those of a folder, the access that new files get here, by the umask.

    safetensors writes files that their owner alone can read, whatever the umask: no other user could serve them.
    """
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    closed = [file for file in files if not (file.is_symlink() or file.stat().st_mode & OTHERS)]
    if not closed:
        return
    probe = _temporary_name(path)
    os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    usual = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in closed:
        with contextlib.suppress(OSError):  # of a file system that keeps no modes
            file.chmod(stat.S_IMODE(file.stat().st_mode) | usual)


def publish_over(temporary: Path, folder: Path) -> None:
    """Rename a folder to its target or, if that exists, replace each of its files.

    Other processes may do the same concurrently with equal files, and have the old ones open.
    """
    if not os.path.lexists(folder):
        try:
            publish(temporary, folder)
            return
        except OSError:
            if not folder.is_dir():
                raise
    if not folder.is_dir():
        folder.unlink()
    folder.mkdir(exist_ok=True)
    for file in sorted(temporary.iterdir()):
        publish(file, folder / file.name)


def _sync(path: str) -> None:
    if os.path.islink(path) or (os.name == "nt" and os.path.isdir(path)):  # Windows syncs files alone, by a writer
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as err:
        if err.errno not in NO_SYNC:
            raise
    finally:
        os.close(handle)


# Leftovers of killed processes


def sweep(folder: Path, *, is_ours: bool = False) -> None:
    """Remove unfinished files of killed processes from a folder.

    Args:
        is_ours: Only llmtune writes into it: old hidden entries of any name are removed.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and _is_left(entry, is_ours):
                _remove(entry)


def _is_left(entry: os.DirEntry[str], is_ours: bool) -> bool:
    match = TEMPORARY.fullmatch(entry.name)
    if match is None:
        return is_ours and _is_old(entry)
    if match[1] == machine_id():
        return not is_alive(int(match[2]))
    return _is_old(entry)


def _is_old(entry: os.DirEntry[str]) -> bool:
    """Return whether nothing in it was written for a day."""
    try:
        times = [entry.stat(follow_symlinks=False).st_mtime]
        if entry.is_dir(follow_symlinks=False):
            with os.scandir(entry.path) as inside:
                times += [item.stat(follow_symlinks=False).st_mtime for item in inside]
    except OSError:
        return False
    return time.time() - max(times) > LEFT_SECONDS


def _remove(entry: os.DirEntry[str]) -> None:
    with contextlib.suppress(OSError):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)


def _temporary_name(target: Path) -> Path:
    name = os.fsdecode(os.fsencode(target.name)[:NAME_BYTES])
    return target.parent / f".{name}.{machine_id()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


@lru_cache(maxsize=1)
def machine_id() -> str:
    """Return an id of the machine's boot and container, within which process ids are unique."""
    parts = [platform.node()]
    for file in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            parts.append(os.readlink(file) if file.endswith("pid") else Path(file).read_text(encoding="ascii").strip())
    return hashlib.blake2b("\n".join(parts).encode("utf-8", "replace"), digest_size=4).hexdigest()


# Seals


ENDS_SEAL = 3
"""Numbers of a seal of a file's ends."""


def seal_of(file: Path, *, ends_only: bool = False) -> list[int]:
    """Size and checksum of a file, to detect damage.

    Args:
        ends_only: Of its first and its last MiB, one each: for files that are too large to be read at each start.
    """
    size = check = 0
    with file.open("rb") as opened:
        if ends_only:
            size = os.fstat(opened.fileno()).st_size
            first = zlib.crc32(opened.read(CHUNK_BYTES))
            opened.seek(max(size - CHUNK_BYTES, 0))
            return [size, first, zlib.crc32(opened.read(CHUNK_BYTES))]
        while chunk := opened.read(CHUNK_BYTES):
            size, check = size + len(chunk), zlib.crc32(chunk, check)
    return [size, check]


def is_whole(file: Path, seal: Any, *, ends_only: bool = False) -> bool:
    """Return whether a file is the one that was sealed."""
    try:
        if not isinstance(seal, list) or [file.stat().st_size] != seal[:1]:
            return False
        return seal_of(file, ends_only=ends_only) == seal
    except OSError:
        return False
