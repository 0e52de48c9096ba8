"""Small files and folders, written atomically."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmtune.errors import OutputError
from llmtune.utils.atomic import is_whole, publish, seal_of, temporary_file, temporary_folder

FULL_BYTES = 50_000_000
"""Free bytes below which a failed write of torch is attributed to a full disk."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if there is no file, or no object in it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


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
