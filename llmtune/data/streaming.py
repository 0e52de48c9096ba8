"""Stream rows during training: for data that is larger than the disk, or not worth a copy there.

The same readers, formats and preprocessing as `loading`; nothing is cached, so rows cannot be sampled from the whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset

from llmtune.data.canonical import schema_of
from llmtune.data.files import Located
from llmtune.data.info import DATASET_MAPPING
from llmtune.data.items import expand, is_hub_source, local_parts, parse_hub_source, parse_item, split_items
from llmtune.data.loading import (
    AS_THEY_ARE,
    Rules,
    located_rows,
    made_rows,
    rules_of,
)
from llmtune.data.readers import read_files
from llmtune.data.remote import fetch_parts, info_of_item
from llmtune.data.row_cache import REPORT_FILE, ROWS_FILE, fill_record, identity_values, open_cached, store
from llmtune.data.rows import LoadReport, canonical_records, digested, new_digest, write_records
from llmtune.data.snapshot import read_split
from llmtune.errors import DataError
from llmtune.hub.clients import HubOptions
from llmtune.types import DocumentUnit, RowKind
from llmtune.utils.files import write_json
from llmtune.utils.logging import get_logger

Opener: TypeAlias = "Callable[[], Iterable[Located]]"


@dataclass(frozen=True)
class _Source:
    name: str
    rows: Opener
    rules: Rules
    values: dict[str, tuple[str, ...]]
    limit: int | None


class RecordStream:
    """Iterable over the canonical records of several sources, one row of each in turn, until all are exhausted.

    Args:
        names: As for `get_dataset`; `#n` after one takes its first n rows.
        strict: The first bad row is fatal; else bad rows are skipped and counted.
        model_name: Replaces `{{NAME}}`. model_author: Replaces `{{AUTHOR}}`.
        kind: What rows are read as.
        document: Row of a `.txt` file: each of its lines, or the whole file.

    Raises:
        LlmtuneError: A source that does not exist.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        strict: bool = False,
        hub: HubOptions = HubOptions(),  # noqa: B008 - it is frozen
        model_name: Sequence[str] = (),
        model_author: Sequence[str] = (),
        kind: RowKind = "conversations",
        document: DocumentUnit = "line",
    ) -> None:
        self.strict = strict
        self._kind = kind
        self._reported = False  # only one pass is reported: the others are the same
        self._sources = [_open(name, hub, model_name, model_author, document) for name in split_items(names)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield one pass. Two passes give the same records in the same order."""
        reports = [LoadReport(source.name) for source in self._sources]
        running = [self._records(source, report) for source, report in zip(self._sources, reports, strict=True)]
        while running:
            for records in list(running):
                record = next(records, None)
                if record is None:
                    running.remove(records)
                else:
                    yield record
        for report in reports:
            if not self._reported and report.rows_kept:
                get_logger().info(f"{report.summary()} (streamed)")
            if warning := report.warning():
                get_logger().warning(warning)
        self._reported = True
        if not any(report.rows_kept for report in reports):
            raise DataError(f"No row of {', '.join(report.source for report in reports)} can be used.")

    def head(self, num_records: int) -> Dataset:
        """Return the first records of a pass as a cached dataset."""
        records = list(itertools.islice(self, num_records))

        def fill(folder: Path) -> str:
            digest = new_digest("records")
            schema = schema_of(records[0] if records else ())
            write_records(digested(records, digest), folder / ROWS_FILE, schema)
            write_json(folder / REPORT_FILE, {"head": len(records)})
            return str(new_digest("head", digest.hexdigest()).hexdigest())

        return open_cached(store(fill))

    def _records(self, source: _Source, report: LoadReport) -> Iterator[dict[str, Any]]:
        rules = source.rules
        records = canonical_records(
            source.rows(),
            report,
            columns=rules.columns,
            preprocess=rules.preprocess,
            strict=self.strict,
            kind=self._kind,
        )
        for record in itertools.islice(records, source.limit):
            yield fill_record(record, source.values) if source.values else record


def _open(
    name: str, hub: HubOptions, model_name: Sequence[str], model_author: Sequence[str], document: DocumentUnit
) -> _Source:
    item = parse_item(name)
    info = DATASET_MAPPING.get(item.source)
    rules = AS_THEY_ARE if info is None else rules_of(item.source, info)
    values = identity_values(
        model_name or (info.default_name if info else ()), model_author or (info.default_author if info else ())
    )
    return _Source(name, _opener(item.source, hub, document), rules, values, item.sample)


def _opener(source: str, hub: HubOptions, document: DocumentUnit) -> Opener:
    info = DATASET_MAPPING.get(source)
    if info is not None and info.path is not None:
        return _local(info.path, document)
    if info is not None and info.get_function is not None:
        rows, _ = made_rows(source, info)
        return lambda: located_rows(rows, source)
    if info is None and not is_hub_source(source):
        return _local(source, document)
    if info is None:
        item = parse_hub_source(source)
        hub, info = replace(hub, use_hf=item.hub == "hf"), info_of_item(item)
    parts = fetch_parts(source, info, hub, quiet=source not in DATASET_MAPPING)
    return lambda: itertools.chain.from_iterable(read_split(split, parts.folder, document) for split in parts.train)


def _local(source: str, document: DocumentUnit) -> Opener:
    parts = local_parts(expand(source))
    return lambda: read_files(parts.train, parts.folder, document)
