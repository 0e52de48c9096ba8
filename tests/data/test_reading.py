"""Rows that several processes read by parts: the same rows, reports and errors as those of one process."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtune import register_dataset
from llmtune.data import readers, reading
from llmtune.data.files import cut_lines, read_lines, read_part
from llmtune.data.loading import load_source
from llmtune.errors import DataError, LlmtuneError, OutputError, UsageError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux")

PART_BYTES = 300
ROWS = [{"query": f"question {number}", "response": f"answer {number} 你好\u2028"} for number in range(60)]


def lines_of(rows: list[Any], end: str = "\n") -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + end for row in rows)


MIXED: list[Any] = [
    *ROWS[:20], "", "not JSON", *ROWS[20:30], {"messages": [{"role": "user", "content": "q"}]}, "   ", '["a list"]',
    {"text": "a text", "topic": 1}, {"topic": 2, "query": "q", "response": "r", "extra": 1}, *ROWS[30:40],
    json.dumps(ROWS[1]) + json.dumps(ROWS[2]), {"query": "q", "response": "r", "label": False}, *ROWS[40:], "{", "1",
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "mood": 3}]},
]  # fmt: skip

FILES: dict[str, Callable[[Path], object]] = {
    "lines.jsonl": lambda path: path.write_text(lines_of(ROWS)),
    "lines.json": lambda path: path.write_text(lines_of(ROWS)),
    "no_last_end.jsonl": lambda path: path.write_text(lines_of(ROWS).rstrip("\n")),
    "marked.jsonl": lambda path: path.write_text("\ufeff" + lines_of(ROWS)),
    "windows.jsonl": lambda path: path.write_bytes(lines_of(ROWS, "\r\n").encode()),
    "mixed.jsonl": lambda path: path.write_text(lines_of(MIXED)),
    "long_line.jsonl": lambda path: path.write_text(lines_of([*ROWS, {"text": "x" * 5000}, *ROWS])),
    "array.json": lambda path: path.write_text(json.dumps(ROWS)),
    "pretty.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "glued.jsonl": lambda path: path.write_text("".join(map(json.dumps, ROWS))),
    "texts.txt": lambda path: path.write_text("\n\n".join(f"a line {number}" for number in range(90))),
    "packed.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines_of(ROWS).encode())),
    "table.csv": lambda path: path.write_text("query,response\n" + "".join(f"q{i},r{i}\n" for i in range(90))),
    "table.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
}


def in_processes(source: Path, processes: int, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    loaded = load_source(str(source), processes=processes, overwrite_cache=True, **options)
    return loaded.train.to_list(), loaded.report.to_json()


def error_of(source: Path, processes: int, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        in_processes(source, processes, **options)
    return str(caught.value)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(readers, "PART_BYTES", PART_BYTES)


CUT = {"lines.jsonl", "lines.json", "no_last_end.jsonl", "marked.jsonl", "windows.jsonl", "mixed.jsonl"}
CUT |= {"long_line.jsonl", "texts.txt"}
"""Files that several processes read."""


@pytest.mark.parametrize("name", FILES)
def test_every_layout(tmp_path, name):
    file = tmp_path / name
    FILES[name](file)
    assert (len(readers.parts_of([file], cut=True)) > 2) == (name in CUT)
    assert in_processes(file, 3) == in_processes(file, 1)


def test_a_folder_of_every_layout(tmp_path, capfd):
    for name, write in FILES.items():
        write(tmp_path / name)
    with_one = in_processes(tmp_path, 1)
    said = capfd.readouterr().err
    assert in_processes(tmp_path, 3) == with_one
    assert capfd.readouterr().err == said
    assert with_one[1]["bad_rows"] == 5


@given(st.lists(st.text("ab\r\n 你", max_size=30), max_size=30).map("\n".join), st.integers(1, 80), st.booleans())
def test_parts_have_the_lines_of_the_file(tmp_path_factory, text, size, marked):
    file = tmp_path_factory.mktemp("cut") / "a.txt"
    file.write_bytes(("\ufeff" * marked + text).encode())
    parts = cut_lines(file, size)
    assert [line for part in parts for line in read_part(file, part)] == list(read_lines(file))
    assert all(part.stop - part.start for part in parts)


BROKEN: dict[str, bytes] = {
    "not UTF-8": lines_of(ROWS[:30]).encode() + b'{"text": "\xff"}\n' + lines_of(ROWS).encode(),
    "a NUL byte": lines_of(ROWS[:30]).encode() + b'{"text": "\0"}\n' + lines_of(ROWS).encode(),
    "twice": lines_of(ROWS[:30]).encode() + b"\xff\n" + lines_of(ROWS).encode() + b"\0\n",
    "no JSON": b"query,response\n" + b"a,b\n" * 400,
    "only bad rows": b'{"foo": 1}\n' * 100,
    "lists": b"[]\n" * 100,
}
FOLDERS: dict[str, dict[str, bytes]] = {
    "an empty file": {"a": lines_of(ROWS).encode(), "b": b"", "c": lines_of(ROWS).encode()},
    "an empty file, and one that is UTF-16": {"a": b"", "b": lines_of(ROWS).encode("utf-16")},
    "a bad file": {"a": lines_of(ROWS).encode(), "b": BROKEN["not UTF-8"], "c": BROKEN["a NUL byte"]},
}


@pytest.mark.parametrize("fault", BROKEN)
def test_errors(tmp_path, fault):
    file = tmp_path / "a.jsonl"
    file.write_bytes(BROKEN[fault])
    assert error_of(file, 3) == error_of(file, 1)


def test_the_first_bad_row_under_strict(tmp_path):
    file = tmp_path / "a.jsonl"
    FILES["mixed.jsonl"](file)
    message = error_of(file, 3, strict=True)
    assert message == error_of(file, 1, strict=True)
    assert "line 22" in message


@pytest.mark.parametrize("fault", FOLDERS)
def test_errors_of_folders(tmp_path, fault):
    for name, raw in FOLDERS[fault].items():
        (tmp_path / f"{name}.jsonl").write_bytes(raw)
    assert error_of(tmp_path, 3) == error_of(tmp_path, 1)


def test_a_large_file_of_blank_lines(tmp_path):
    (tmp_path / "a.txt").write_text("\n" * 900)
    (tmp_path / "b.txt").write_text("a line\n" * 200)
    assert error_of(tmp_path, 3) == error_of(tmp_path, 1)


def test_many_unused_columns(tmp_path):
    rows = [row | {f"{number}-{column}": 1 for column in range(30)} for number, row in enumerate(ROWS)]
    (tmp_path / "a.jsonl").write_text(lines_of(rows))
    assert in_processes(tmp_path, 3) == in_processes(tmp_path, 1)


def test_a_name_that_is_not_utf8(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(BROKEN["not UTF-8"])
    assert error_of(folder, 3) == error_of(folder, 1)


def test_preprocessing_of_ours_runs_in_the_processes(tmp_path):
    register_dataset("parted", path=str(tmp_path / "a.jsonl"), preprocess="llmtune.data.preprocess.single_turn:alpaca")
    rows = [{"instruction": f"do {number}", "output": "done" if number % 2 else None} for number in range(90)]
    (tmp_path / "a.jsonl").write_text(lines_of(rows))
    one, several = (load_source("parted", processes=count, overwrite_cache=True) for count in (1, 3))
    assert one.report.rows_kept == 45
    assert (several.train.to_list(), several.report) == (one.train.to_list(), one.report)


def test_a_function_of_the_user_sees_all_rows(tmp_path):
    """It may keep state, to drop what it has seen for instance."""
    (tmp_path / "a.jsonl").write_text(lines_of(ROWS * 3))
    for count in (1, 3):
        seen: set[str] = set()
        register_dataset(
            f"unique-{count}",
            path=str(tmp_path / "a.jsonl"),
            preprocess=lambda row, seen=seen: None if row["query"] in seen else seen.add(row["query"]) or row,
        )
        assert load_source(f"unique-{count}", processes=count, overwrite_cache=True).report.rows_kept == len(ROWS)


# Processes that end


def failing(monkeypatch: pytest.MonkeyPatch, fail: Callable[[], object]) -> None:
    """Let the process that reads the third part fail."""
    former = reading._attempt

    def attempt(part: Any, convert: Any, made: Path, *words: Any) -> dict[str, Any]:
        if made.stem.endswith("2"):
            fail()
        return former(part, convert, made, *words)

    monkeypatch.setattr(reading, "_attempt", attempt)


def test_a_killed_process(tmp_path, monkeypatch):
    file = tmp_path / "a.jsonl"
    FILES["lines.jsonl"](file)
    failing(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(LlmtuneError, match=r"was ended by signal 9; .*lower --dataset_num_proc"):
        in_processes(file, 2)


def test_a_process_that_ends_of_itself(tmp_path, monkeypatch):
    FILES["lines.jsonl"](tmp_path / "a.jsonl")
    failing(monkeypatch, lambda: os._exit(0))
    with pytest.raises(LlmtuneError, match=r"was ended with status 0; --dataset_num_proc 1"):
        in_processes(tmp_path / "a.jsonl", 2)


def test_a_process_that_may_not_start_others(tmp_path, monkeypatch):
    FILES["lines.jsonl"](tmp_path / "a.jsonl")
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    assert len(in_processes(tmp_path / "a.jsonl", 2)[0]) == len(ROWS)


def test_errors_keep_their_kind(tmp_path, monkeypatch):
    FILES["lines.jsonl"](tmp_path / "a.jsonl")

    def refuse() -> None:
        raise UsageError("not so")

    monkeypatch.setattr(reading, "write_records", lambda *_: refuse())
    with pytest.raises(UsageError, match="not so"):
        in_processes(tmp_path / "a.jsonl", 2)


def test_a_full_disk(tmp_path, monkeypatch):
    file = tmp_path / "a.jsonl"
    FILES["lines.jsonl"](file)

    def full() -> None:
        raise OSError(28, "No space left on device")

    failing(monkeypatch, full)
    with pytest.raises(OutputError, match="No space left on device"):
        in_processes(file, 2)
    assert not list((Path(os.environ["LLMTUNE_CACHE"]) / "rows").glob("*writing*/*"))
