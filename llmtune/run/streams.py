"""run.log: what a run writes to its standard streams, without the redraws of progress bars."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""ANSI sequences: colours, cursor movements."""


class Tee:
    """A text stream that is written to a file as well, whole lines at a time.

    All else is the stream's own, `isatty` above all, so that progress bars stay. The file is appended to, so that
    several processes can share it.
    """

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self._stream = stream
        self._file = file
        self._begun = ""
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        written = self._stream.write(text)
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
            self._begun = self._begun.rpartition("\r")[2] if "\r" in self._begun else self._begun
            shown = [CONTROL.sub("", line.rstrip("\r").rpartition("\r")[2]) for line in lines]
            with contextlib.suppress(OSError, ValueError):  # a full disk is reported where it matters
                self._file.write("".join(f"{line}\n" for line in shown))
        return written

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def logged_to(path: Path) -> Iterator[TextIO]:
    """Append what is written to `sys.stdout` and `sys.stderr` within the block to a file; yield the file."""
    former = sys.stdout, sys.stderr
    with path.open("a", encoding="utf-8", errors="replace", buffering=1) as file:
        sys.stdout, sys.stderr = Tee(sys.stdout, file), Tee(sys.stderr, file)
        try:
            yield file
        finally:
            sys.stdout, sys.stderr = former
