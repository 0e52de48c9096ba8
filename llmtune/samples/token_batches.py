"""Canonical rows encoded into Arrow columns: of the token cache, and of the parts of a streamed window."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from llmtune.data.canonical import comparison_of, from_record, prompt_of
from llmtune.samples.encode_report import EncodeReport, count_comparison, count_prompt
from llmtune.templates.comparisons import EncodedComparison, encode_comparisons
from llmtune.templates.prompts import encode_prompts
from llmtune.types import IGNORE_INDEX, MEDIA_COLUMNS, Encoded, media_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmtune.templates.chat import ChatTemplate


SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("row", pa.int64()),
        *((column, pa.list_(pa.string())) for column in MEDIA_COLUMNS.values()),
        ("loss_weights", pa.list_(pa.float32())),
    ]
)


COMPARISON_COLUMNS = pa.schema(
    [
        ("parts", pa.list_(pa.int32())),
        ("ranks", pa.list_(pa.int32())),
        ("label", pa.bool_()),
        ("margin", pa.float64()),
    ]
)

Records: TypeAlias = "list[dict[str, Any]]"
Encode: TypeAlias = "Callable[[Records, ChatTemplate, int, EncodeReport], list[pa.Array]]"
"""From canonical records, of which the first is row `start`, to columns; the report counts them."""


def layout_of(names: Iterable[str]) -> tuple[pa.Schema, Encode]:
    """Return the schema of encoded rows, and what encodes them, by the columns of the canonical rows."""
    columns = set(names)
    if "columns" in columns:
        return SCHEMA, _prompts
    if "answers" in columns:
        return pa.schema([*SCHEMA, *COMPARISON_COLUMNS]), _comparisons
    return SCHEMA, _conversations


Numbered: TypeAlias = "list[tuple[int, Encoded]]"
"""Encoded samples, each with the index of its row."""


def _conversations(
    records: list[dict[str, Any]], template: ChatTemplate, start: int, report: EncodeReport
) -> list[pa.Array]:
    conversations = [from_record(record) for record in records]
    report.num_with_images += sum(bool(conversation.media) for conversation in conversations)
    samples: Numbered = []
    for index, row in enumerate(template.encode_rows(conversations), start):
        report.count(row, f"row {index}")
        samples += [(index, sample) for sample in (row.samples if row.problem is None else ())]
    return _columns(samples)


def _comparisons(
    records: list[dict[str, Any]], template: ChatTemplate, start: int, report: EncodeReport
) -> list[pa.Array]:
    rows = [comparison_of(record) for record in records]
    report.num_with_images += sum(bool(row.prompt.media) for row in rows)
    kept: list[tuple[int, EncodedComparison]] = []
    for index, row in enumerate(encode_comparisons(rows, template, template.max_length), start):
        count_comparison(report, row, f"row {index}")
        if row.responses:
            kept.append((index, row))
    ids = [len(row.prompt) for _, row in kept]
    parts = [[size, *(len(one.input_ids) for one in row.responses)] for size, (_, row) in zip(ids, kept, strict=True)]
    return [
        *_columns([(index, row.joined()) for index, row in kept]),
        _lists(parts),
        _lists([[one.rank for one in row.responses] for _, row in kept]),
        pa.array([row.responses[0].label for _, row in kept], pa.bool_()),
        pa.array([row.margin for _, row in kept], pa.float64()),
    ]


def _prompts(records: list[dict[str, Any]], template: ChatTemplate, start: int, report: EncodeReport) -> list[pa.Array]:
    rows = [prompt_of(record).conversation for record in records]
    report.num_with_images += sum(bool(row.media) for row in rows)
    samples: Numbered = []
    for index, row in enumerate(encode_prompts(rows, template, template.max_length), start):
        count_prompt(report, row, f"row {index}")
        if row.input_ids:
            samples.append((index, Encoded(row.input_ids, [IGNORE_INDEX] * len(row.input_ids), row.media)))
    return _columns(samples)


def _columns(samples: Numbered) -> list[pa.Array]:
    """Return the columns of SCHEMA."""
    return [
        _lists([sample.input_ids for _, sample in samples]),
        _lists([sample.labels for _, sample in samples]),
        pa.array([index for index, _ in samples], pa.int64()),
        *(
            pa.array([media_columns(sample.media).get(column, []) for _, sample in samples], pa.list_(pa.string()))
            for column in MEDIA_COLUMNS.values()
        ),
        pa.array([sample.weights for _, sample in samples], pa.list_(pa.float32())),
    ]


def _lists(values: list[list[int]]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    flat = np.fromiter((token for value in values for token in value), np.int32, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def samples_of(table: pa.Table) -> list[dict[str, Any]]:
    """Return the samples of encoded rows as a TokenStore gives them, each with its `row`, without media."""
    lists = [name for name in ("input_ids", "labels", "parts", "ranks") if name in table.column_names]
    values = [name for name in ("row", "label", "margin") if name in table.column_names]
    columns = [*(_arrays(table[name]) for name in lists), *(table[name].to_pylist() for name in values)]
    found = [dict(zip((*lists, *values), one, strict=True)) for one in zip(*columns, strict=True)]
    weights = table["loss_weights"]
    if weights.null_count < len(weights):
        for sample, own, is_given in zip(found, _arrays(weights), weights.is_valid().to_pylist(), strict=True):
            if is_given:
                sample["loss_weights"] = own
    return found


def _arrays(column: pa.ChunkedArray) -> list[NDArray[Any]]:
    """Return the lists of a column as arrays, without copying."""
    found: list[NDArray[Any]] = []
    for chunk in column.chunks:
        values = chunk.values.to_numpy()
        found += [values[start:end] for start, end in pairwise(chunk.offsets.to_pylist())]
    return found
