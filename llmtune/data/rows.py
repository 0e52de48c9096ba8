"""From rows to canonical records and their Arrow file, with a report on recognised, filtered and bad rows."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from llmtune.data.arrow_files import open_batches
from llmtune.data.canonical import (
    SCHEMA,
    to_comparison_record,
    to_prompt_record,
    to_record,
    without_defaults,
)
from llmtune.data.comparisons import as_kind, compares, recognise_comparison, to_comparison, to_responses
from llmtune.data.contents import Found
from llmtune.data.files import BadLine, Located
from llmtune.data.formats import conversation_of_cells, rename_columns
from llmtune.data.preprocess.common import Drop, Preprocess, preprocess_row
from llmtune.data.prompts import recognise_prompt, to_prompt
from llmtune.data.shapes import Recognised, is_rejected, present, recognise, recognise_cells
from llmtune.data.values import excerpt, printable
from llmtune.errors import DataError, RowError
from llmtune.types import RowKind

BATCH_ROWS = 1000
EXCERPT_CHARS = 80
SHOWN_BAD_ROWS = 5
SHOWN_COLUMNS = 20
MOST_UNUSED = 1000
"""Most unused columns that are noted: where each row has keys of its own, they are unbounded."""

REJECTED = Drop("the response's label is false")


@dataclasses.dataclass(frozen=True, slots=True)
class BadRow:
    """A skipped row. `excerpt`: its first 80 characters."""

    location: str
    reason: str
    excerpt: str

    def __str__(self) -> str:
        return f"{self.location}: {self.reason}. The row: {self.excerpt}"


@dataclasses.dataclass(slots=True)
class LoadReport:
    """Counts of the rows of one source.

    Attributes:
        rows_read: Rows of the source. `rows_kept` are conversations: one row may become several.
        filtered: Rows not to train on, by reason: the dataset excludes them, or their label does. They are not bad:
            `strict` allows them.
        first_bad: The first five bad rows.
        shapes: Rows kept of each format.
        columns: The columns that each format was read from.
        unused_columns: Columns, and keys of messages (`messages[].key`), that no row was read from.
        notes: Changes to the turns of rows, with the number of rows.
    """

    source: str
    rows_read: int = 0
    rows_kept: int = 0
    bad_rows: int = 0
    filtered: dict[str, int] = dataclasses.field(default_factory=dict)
    first_bad: list[BadRow] = dataclasses.field(default_factory=list)
    shapes: dict[str, int] = dataclasses.field(default_factory=dict)
    columns: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    unused_columns: list[str] = dataclasses.field(default_factory=list)
    notes: dict[str, int] = dataclasses.field(default_factory=dict)

    def summary(self) -> str:
        """Return one line: the recognised formats and the number of rows kept."""
        many = len(self.shapes) > 1
        shown = [
            f"{name} ({'/'.join(self.columns.get(name, []))})" + (f" {count:,}" if many else "")
            for name, count in sorted(self.shapes.items(), key=lambda item: -item[1])
        ]
        line = f"{self.source}: {self.rows_kept:,} rows, {'formats' if many else 'format'} {', '.join(shown)}"
        line += f"; {self._filtered()}" if self.filtered else ""
        line += "".join(
            f"; in {count:,} {'row' if count == 1 else 'rows'} {note}" for note, count in self.notes.items()
        )
        unused = ", ".join(self.unused_columns[:SHOWN_COLUMNS])
        more = len(self.unused_columns) - SHOWN_COLUMNS
        unused += f" and {more:,} more" if more > 0 else ""
        return line + (f"; columns not used: {unused}" if unused else "")

    def _filtered(self) -> str:
        reasons = [f"{reason} {count:,}" for reason, count in sorted(self.filtered.items(), key=lambda item: -item[1])]
        return f"filtered out {sum(self.filtered.values()):,} of {self.rows_read:,} ({', '.join(reasons)})"

    def warning(self) -> str | None:
        """Return one line on the bad rows, or None."""
        if not self.bad_rows:
            return None
        verb = "is bad and" if self.bad_rows == 1 else "are bad and"
        return (
            f"{self.source}: {self.bad_rows:,} of {self.rows_read:,} rows {verb} skipped; "
            f"first: {self.first_bad[0]} (--strict true makes this fatal)"
        )

    def check(self, *, strict: bool) -> None:
        """Raise a DataError if no row is good, or if `strict` and one is bad."""
        if strict and self.bad_rows:
            bad = self.first_bad[0]
            raise DataError(
                f"{self.source}, {bad.location}: {bad.reason}. Fix the row, or skip bad rows with "
                f"--strict false. The row: {bad.excerpt}"
            )
        if not self.rows_kept:
            first = f"; first: {self.first_bad[0]}" if self.first_bad else ""
            first += f"; {self._filtered()}" if self.filtered else ""
            raise DataError(f"{self.source}: none of its {self.rows_read:,} rows can be used{first}")

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "source"}

    @classmethod
    def from_json(cls, source: str, value: Mapping[str, Any]) -> LoadReport:
        fields = {**value, "first_bad": [BadRow(**bad) for bad in value["first_bad"]]}
        return cls(source=source, **fields)

    def add_part(self, part: LoadReport) -> None:
        """Add the counts of the rows behind those that were counted; as if one reader had read both."""
        self.rows_read += part.rows_read
        self.rows_kept += part.rows_kept
        self.bad_rows += part.bad_rows
        self.first_bad = [*self.first_bad, *part.first_bad][:SHOWN_BAD_ROWS]
        for mine, theirs in ((self.filtered, part.filtered), (self.shapes, part.shapes), (self.notes, part.notes)):
            mine.update({name: mine.get(name, 0) + count for name, count in theirs.items()})
        for shape, columns in part.columns.items():
            self.columns[shape] = list(dict.fromkeys([*self.columns.get(shape, ()), *columns]))
        used = {printable(str(name)) for columns in self.columns.values() for name in columns}
        unused = dict.fromkeys([*self.unused_columns, *part.unused_columns])
        self.unused_columns = [name for name in unused if name not in used][:MOST_UNUSED]

    def _add(self, one: _Converted) -> None:
        self.rows_kept += 1
        self.shapes[one.seen.shape] = self.shapes.get(one.seen.shape, 0) + 1
        for note in one.found.notes:
            self.notes[note] = self.notes.get(note, 0) + 1

    def _add_bad(self, location: str, reason: str, text: str) -> None:
        self.bad_rows += 1
        if len(self.first_bad) < SHOWN_BAD_ROWS:
            shown = " ".join(text[:EXCERPT_CHARS].split())
            self.first_bad.append(BadRow(location, printable(reason), printable(shown)))


def new_digest(*parts: object) -> Any:
    """Return a hash object over `parts`; 16 bytes, the length of a fingerprint."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(repr(part).encode("utf-8", "surrogatepass") + b"\n")
    return digest


def canonical_records(
    rows: Iterable[Located],
    report: LoadReport,
    *,
    columns: Mapping[str, str],
    preprocess: Preprocess | None = None,
    need_answer: bool = True,
    strict: bool = False,
    kind: RowKind = "conversations",
) -> Iterator[dict[str, Any]]:
    """Yield the good rows as records of the canonical schema; `report` counts them.

    Args:
        kind: What each row is read as.

    Raises:
        DataError: `strict`, and a row is bad.
    """

    def convert(row: Mapping[str, Any]) -> list[_Converted] | Drop:
        renamed = rename_columns(row, columns)
        made = [renamed] if preprocess is None else preprocess_row(preprocess, renamed)
        if isinstance(made, Drop):
            return made
        if kind == "conversations":
            return _conversations(made, need_answer)
        if kind == "prompts":
            return [_prompt(given, renamed) for given in made]
        return [one for given in made for one in _comparisons(given, kind)]

    return _records(rows, report, convert, strict)


@dataclasses.dataclass(slots=True)
class _Converted:
    """A row's format, its columns, the facts found in its messages, and its canonical record."""

    seen: Recognised
    columns: Iterable[str]
    found: Found
    record: dict[str, Any]


def _conversations(made: Sequence[Mapping[str, Any]], need_answer: bool) -> list[_Converted] | Drop:
    kept: list[_Converted] = []
    for row in made:
        cells = present(row)
        seen = recognise_cells(cells)
        if need_answer and is_rejected(cells, seen.shape):
            continue
        found = Found()
        conversation = conversation_of_cells(cells, seen.shape, need_answer, found)
        kept.append(_Converted(seen, cells, found, to_record(conversation)))
    return kept if kept or not made else REJECTED


def _prompt(row: Mapping[str, Any], original: Mapping[str, Any]) -> _Converted:
    """A row as a prompt. All columns are used: rewards get them."""
    found = Found()
    made = to_prompt(row, found, columns=original)
    seen = recognise_prompt(row)
    found.unused = {name: None for name in found.unused if "[]" in name}
    return _Converted(seen, seen.columns, found, to_prompt_record(made))


def _comparisons(row: Mapping[str, Any], kind: RowKind) -> list[_Converted]:
    found = Found()
    if kind == "responses":
        seen = recognise_comparison(row) if compares(row) else recognise(row)
        made = [to_responses(row, found)]
    else:
        seen, made = recognise_comparison(row), as_kind(to_comparison(row, found), kind)
    return [_Converted(seen, present(row), found, to_comparison_record(one)) for one in made]


def _records(
    rows: Iterable[Located],
    report: LoadReport,
    convert: Callable[[Mapping[str, Any]], list[_Converted] | Drop],
    strict: bool,
) -> Iterator[dict[str, Any]]:
    columns = _Columns()
    try:
        for location, row in rows:
            report.rows_read += 1
            try:
                if isinstance(row, BadLine):
                    raise RowError(row.reason)
                converted = convert(row)
            except (RowError, RecursionError, UnicodeError) as err:
                reason = str(err) if isinstance(err, RowError) else _plain_reason(err)
                report._add_bad(location, reason, row.text if isinstance(row, BadLine) else excerpt(row))
                if strict:
                    report.check(strict=True)
                continue
            if isinstance(converted, Drop):
                report.filtered[converted.reason] = report.filtered.get(converted.reason, 0) + 1
                continue
            for one in converted:
                report._add(one)
                columns.add(one)
                yield one.record
    finally:  # also where the consumer stops early
        report.columns = {shape: list(names) for shape, names in columns.used.items()}
        report.unused_columns = columns.left()


class _Columns:
    """Columns that were read, by format, and columns that were not."""

    def __init__(self) -> None:
        self.used: dict[str, dict[str, None]] = {}
        self._seen: dict[str, None] = {}

    def add(self, one: _Converted) -> None:
        self.used.setdefault(one.seen.shape, {}).update(dict.fromkeys(one.seen.columns))
        if len(self._seen) < MOST_UNUSED:
            self._seen.update((name, None) for name in one.columns if name not in one.seen.columns)
            self._seen.update(one.found.unused)

    def left(self) -> list[str]:
        used = {name for names in self.used.values() for name in names}
        return [printable(str(name)) for name in self._seen if name not in used][:MOST_UNUSED]


def _plain_reason(err: Exception) -> str:
    if isinstance(err, RecursionError):
        return "it is nested too deeply"
    return "it holds text that is not valid Unicode"


def write_records(records: Iterable[dict[str, Any]], file: Path, schema: pa.Schema = SCHEMA) -> None:
    """Write canonical records as an Arrow stream in batches."""
    left = iter(records)
    with open_batches(file, schema) as batches:
        while found := list(itertools.islice(left, BATCH_ROWS)):
            batches.write(pa.RecordBatch.from_pylist(found, schema=schema))


def digested(records: Iterable[dict[str, Any]], digest: Any) -> Iterator[dict[str, Any]]:
    """Yield records; `digest` takes in their values."""
    for record in records:
        digest.update(repr(without_defaults(record)).encode("utf-8"))
        yield record
