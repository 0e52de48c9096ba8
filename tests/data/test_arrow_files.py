"""Arrow files whose batches are joined: the same rows in fewer, bounded batches."""

from __future__ import annotations

import pyarrow as pa
import pytest

from llmtune.data import arrow_files
from llmtune.data.arrow_files import open_batches

SCHEMA = pa.schema([("ids", pa.list_(pa.int32())), ("text", pa.string())])


@pytest.mark.parametrize(
    ("layout", "read"), [(pa.ipc.new_stream, pa.ipc.open_stream), (pa.ipc.new_file, pa.ipc.open_file)]
)
def test_rows_stay_and_batches_are_joined(tmp_path, monkeypatch, layout, read):
    monkeypatch.setattr(arrow_files, "BATCH_BYTES", 2000)
    rows = [
        {"ids": list(range(number % 7)) or None, "text": None if number % 5 == 0 else str(number)}
        for number in range(300)
    ]
    with open_batches(tmp_path / "a.arrow", SCHEMA, layout) as written:
        for start in range(0, 300, 10):
            written.write(pa.RecordBatch.from_pylist(rows[start : start + 10], schema=SCHEMA))
    found = read(pa.memory_map(str(tmp_path / "a.arrow"))).read_all()
    assert found.to_pylist() == rows
    sizes = [batch.nbytes for batch in found.to_batches()]
    assert 1 < len(sizes) < 15
    assert max(sizes) < 3000


@pytest.mark.parametrize(
    ("layout", "read"), [(pa.ipc.new_stream, pa.ipc.open_stream), (pa.ipc.new_file, pa.ipc.open_file)]
)
def test_no_rows(tmp_path, layout, read):
    with open_batches(tmp_path / "a.arrow", SCHEMA, layout):
        pass
    assert read(str(tmp_path / "a.arrow")).read_all().schema == SCHEMA
