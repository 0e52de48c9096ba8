"""Every reader is fed everything: one line of an error each, or rows, and never an exception of a library."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmtune.data import files
from llmtune.data.loading import load_source
from llmtune.data.readers import read_rows
from llmtune.errors import DataError

from .made import ROWS, error_of
from .made import write_raw as write

DEEP = "[" * 900 + "]" * 900
HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "blank": b"\n \n",
    "garbage": bytes(range(256)) * 8,
    "zeros": bytes(1000),
    "null": b"null",
    "list": b"[]",
    "list_of_null": b"[null]",
    "list_of_lists": b"[[1], [2]]",
    "object": b"{}",
    "text": b'"text"',
    "number": b"3",
    "long_number": b"1" * 5000,
    "nan": b"NaN",
    "open_list": b"[" * 100_000,
    "open_object": b'{"a":' * 100_000,
    "deep_list": DEEP.encode(),
    "deep_row": b'{"query": "q", "response": "r", "tools": ' + DEEP.encode() + b"}",
    "surrogate": b'{"query": "\\ud800", "response": "r", "\\udc00": 1}',
    "wrapped_nulls": b'{"data": [null, 3]}',
    "open_quote": b'query,response\n"q,r\n',
    "magic": b"PAR1" + bytes(50) + b"PAR1",
    "arrow_magic": b"ARROW1" + bytes(50) + b"ARROW1",
    "utf16": '{"query": "q"}'.encode("utf-16"),
    "link": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("extension", files.EXTENSIONS)
@pytest.mark.parametrize("content", HOSTILE)
def test_every_reader_is_fed_everything(tmp_path, monkeypatch, extension, content, packed):
    """Whatever stands in a file: rows, or one line that names the file."""
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / f"a{extension}{packed}", HOSTILE[content])
    found = _outcome(path)
    if isinstance(found, DataError):
        assert str(path) in str(found)
        assert "\n" not in str(found)
    else:
        assert found > 0
        assert extension in (".txt", ".csv", ".tsv") or content == "deep_row"


def _outcome(path: Path) -> int | DataError:
    try:
        return len(load_source(str(path)).train)
    except DataError as err:
        return err


@pytest.mark.parametrize("extension", files.EXTENSIONS)
def test_every_reader_misses_its_file(tmp_path, extension):
    assert "does not exist" in error_of(tmp_path / f"a{extension}")
    (tmp_path / f"b{extension}").symlink_to(tmp_path / "nowhere")
    assert "is a link to" in error_of(tmp_path / f"b{extension}")
    os.mkfifo(tmp_path / f"c{extension}")
    assert "is a pipe (FIFO), not a file" in error_of(tmp_path / f"c{extension}")


def test_other_things_than_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("a.jsonl")
        assert "a.jsonl is a socket, not a file" in error_of(Path("a.jsonl"))
    assert "is a device" in error_of(Path("/dev/null"))
    for name in ("x" * 300 + ".jsonl", "a\0b.jsonl", "~nobody-at-all/a.jsonl"):
        with pytest.raises(DataError, match="does not exist"):
            load_source(name)


def test_one_cut_file_of_each_kind(tmp_path):
    table = pa.Table.from_pylist(ROWS * 100)
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as sink:
        sink.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        raw = (tmp_path / name).read_bytes()
        for size in (1, 7, 100, len(raw) // 2, len(raw) - 9):
            assert f"broken {name[2:]}" in error_of(write(tmp_path / f"cut{size}.{name[2:]}", raw[:size]))


@pytest.mark.parametrize("layout", ["stream", "file"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_both_arrow_layouts_give_all_rows(tmp_path, layout, packed):
    table = pa.Table.from_pylist(ROWS * 800)
    with (pa.ipc.new_stream if layout == "stream" else pa.ipc.new_file)(tmp_path / "a.arrow", table.schema) as sink:
        sink.write_table(table)
    path = write(tmp_path / f"b.arrow{packed}", (tmp_path / "a.arrow").read_bytes())
    assert list(read_rows(path)) == [(f"row {n}", row) for n, row in enumerate(ROWS * 800, start=1)]


@pytest.mark.parametrize("extension", ["parquet", "arrow"])
def test_text_of_a_table_that_is_not_utf8(tmp_path, extension):
    """One such row is bad, and the other rows of its batch are not."""
    texts = pa.array([b"a", "\u4f60".encode("gb18030"), b"c"]).cast(pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 3, texts.buffers())
    table = pa.table({"query": texts, "response": ["r"] * 3})
    path = tmp_path / f"a.{extension}"
    if extension == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as sink:
            sink.write_table(table)
    found = list(read_rows(path))
    assert [location for location, _ in found] == ["row 1", "row 2", "row 3"]
    assert (found[0][1]["query"], found[2][1]["query"]) == ("a", "c")
    assert found[1][1].reason == "it holds text that is not UTF-8"
    report = load_source(str(path)).report
    assert (report.rows_kept, report.first_bad[0].location) == (2, "row 2")
