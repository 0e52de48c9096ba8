"""Journal of finished records, line by line, with which a killed evaluation resumes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmtune.errors import OutputError
from llmtune.utils.files import write_text

__all__ = ["Journal"]


class Journal:
    """One JSON record per line, each with its `index`. An incomplete last line is dropped."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.records: dict[int, dict[str, Any]] = {}
        if file.is_file():
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    record = json.loads(line)
                    self.records[int(record["index"])] = record
                except (ValueError, KeyError, TypeError):
                    continue
            self._write_all()

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        lines = []
        for record in records:
            self.records[record["index"]] = record
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as out:
                out.write("".join(lines))
        except OSError as err:
            raise OutputError(f"Cannot write {self.file}: {err.strerror}. Free some space and start again.") from err

    def finish(self) -> list[dict[str, Any]]:
        """Sort the records by index, in the file as well, and return them."""
        self.records = dict(sorted(self.records.items()))
        self._write_all()
        return list(self.records.values())

    def _write_all(self) -> None:
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in self.records.values()]
        write_text(self.file, "".join(lines))
