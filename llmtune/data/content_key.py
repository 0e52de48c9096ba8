"""The hash of what files hold. That of large files is kept: to read 100 GB at every start would take minutes."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from llmtune.data.rows import new_digest
from llmtune.errors import DataError, OutputError
from llmtune.utils.files import cache_root, read_json, write_json
from llmtune.utils.progress import progress_bar

Named: TypeAlias = "Sequence[tuple[str, Path]]"
"""Files, each with the name that is part of the key."""

KEPT_BYTES = 1 << 28
"""From which on a hash is kept: some tenths of a second."""
QUIET_SECONDS = 60.0
"""A file that changed more recently may change again without a new time: its hash is not kept."""
CHUNK_BYTES = 1 << 20


def content_key(digest: Any, files: Named) -> str:
    """Return the hash of what `digest` has taken in, and of the names, sizes and contents of the files.

    Raises:
        DataError: A file cannot be read.
    """
    states = [file.stat() for _, file in files]
    size = sum(state.st_size for state in states)
    if size < KEPT_BYTES:
        return _read(digest, files, size)
    note = _note_of(digest, files, states)
    kept = read_json(note).get("key")
    if isinstance(kept, str) and re.fullmatch(r"[0-9a-f]{32}", kept):
        return kept
    key = _read(digest, files, size)
    if time.time() - max(max(state.st_mtime, state.st_ctime) for state in states) > QUIET_SECONDS:
        with contextlib.suppress(OutputError):  # of a cache that cannot be written, which storing the rows reports
            write_json(note, {"key": key})
    return key


def _note_of(digest: Any, files: Named, states: Sequence[os.stat_result]) -> Path:
    known = [
        (name, str(file.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
        for (name, file), state in zip(files, states, strict=True)
    ]
    return cache_root() / "keys" / f"{new_digest(digest.hexdigest(), known).hexdigest()}.json"


def _read(digest: Any, files: Named, size: int) -> str:
    quiet = size < KEPT_BYTES
    with progress_bar(total=size, desc="looking for cached rows", unit="B", unit_scale=True, quiet=quiet) as bar:
        for name, file in files:
            digest.update(repr((name, file.stat().st_size)).encode("utf-8", "surrogatepass"))
            try:
                with file.open("rb") as opened:
                    while chunk := opened.read(CHUNK_BYTES):
                        digest.update(chunk)
                        bar.update(len(chunk))
            except OSError as err:
                raise DataError(f"{file} cannot be read: {err.strerror or err}. Check its permissions.") from err
    return str(digest.hexdigest())
