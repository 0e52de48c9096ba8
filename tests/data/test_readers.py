"""Files of every kind, whole and broken."""

from __future__ import annotations

import gzip
import json
import shlex
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmtune.data import files
from llmtune.data.files import BadLine
from llmtune.data.readers import read_rows
from llmtune.errors import DataError

from ..traced import traced_peak
from .made import ROWS, error_of, rows_of
from .made import write_raw as write

LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n"
LAYOUTS = {
    "lines.jsonl": LINES,
    "lines.ndjson": LINES,
    "disguised.json": LINES,
    "array.json": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "array.jsonl": json.dumps(ROWS, indent=1),
    "wrapped.json": json.dumps({"data": ROWS}),
    "wrapped_pretty.json": json.dumps({"version": "1", "data": ROWS}, indent=2),
    "glued.jsonl": "".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    "glued.json": "".join(json.dumps(row) for row in ROWS) + "\n",
    "partly_glued.jsonl": LINES.replace("}\n", "} ", 1),
    "glued_later.jsonl": LINES.replace("}\n", "}", 2).replace("}{", "}\n{", 1),
    "table.csv": "query,response\n你好,a\u2028b\nq2,r2\nq3,r3\n",
    "table.tsv": "query\tresponse\n你好\ta\u2028b\nq2\tr2\n\nq3\tr3\n",
}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("change", ["plain", "bom", "crlf"])
def test_each_json_layout_gives_the_same_rows(tmp_path, name, packed, change):
    raw = LAYOUTS[name].encode()
    if change == "bom":
        raw = b"\xef\xbb\xbf" + raw
    if change == "crlf":
        raw = raw.replace(b"\n", b"\r\n")
    assert rows_of(write(tmp_path / (name + packed), raw)) == ROWS


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_parquet_rows_are_numbered(tmp_path, packed):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    path = write(tmp_path / ("b.parquet" + packed), (tmp_path / "a.parquet").read_bytes())
    assert list(read_rows(path)) == [(f"row {n}", row) for n, row in enumerate(ROWS, start=1)]


def test_parquet_padding_is_removed(tmp_path):
    rows = [{"tools": [{"a": {"x": 1}}, {"a": {"y": 2}}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet") == rows


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_each_line_of_text_is_a_row(tmp_path, packed):
    path = write(tmp_path / ("a.txt" + packed), "one\r\n\n  \n two\n")
    assert list(read_rows(path)) == [("line 1", {"text": "one"}), ("line 4", {"text": " two"})]


def test_one_row_is_not_a_wrapper(tmp_path):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    for indent in (None, 2):
        assert rows_of(write(tmp_path / "a.json", json.dumps(row, indent=indent))) == [row]


ROW_LIKE = [
    {"query": "q", "response": "r", "references": [{"title": "t", "text": "x"}]},
    {"question": "q", "answer": "r", "data": [{"query": "a", "response": "b"}]},
    {"text": "t", "data": [{"a": 1}]},
    {"question": "q", "references": [{"title": "t"}]},
    {"chosen": "a", "rejected": "b", "prompt": "p", "data": [{"query": "q", "response": "r"}]},
    {"Query": "q", "Response": "r", "items": [{"text": "t"}]},
    {"query": "q", "history": [{"query": "a", "response": "b"}]},
    {"conversations": [{"human": "q", "assistant": "r", "text": "t"}]},
    {"chosen_messages": [{"role": "user", "content": "q"}], "rejected_messages": []},
]


@pytest.mark.parametrize("row", ROW_LIKE)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_row_that_holds_a_list_of_objects(tmp_path, row, indent):
    assert rows_of(write(tmp_path / "a.json", json.dumps(row, indent=indent))) == [row]


@pytest.mark.parametrize(
    "wrapper",
    [
        {"data": ROWS},
        {"version": 1, "description": "d", "rows": ROWS},
        {"system": "s", "data": ROWS},
        {"instruction": "answer these", "data": ROWS},
        {"output": ROWS},
        {"conversations": ROWS},
    ],
)
def test_a_wrapped_list_gives_its_rows(tmp_path, wrapper):
    for indent in (None, 2):
        assert rows_of(write(tmp_path / "a.json", json.dumps(wrapper, indent=indent))) == ROWS


@pytest.mark.parametrize("mark", [";", "\t", "|", ","])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
@pytest.mark.parametrize("head", ["query{}response{}system\n", "Frage{}Antwort{}x,y\n", "sep={}\nQuery{}Response{}c\n"])
def test_the_header_tells_the_delimiter(tmp_path, mark, name, head):
    if mark == "," and "x,y" in head:
        return
    text = head.replace("{}", mark) + f'"a{mark}b"{mark}r, s; t{mark}\n'.replace("r, s; t", '"r, s; t"')
    found = list(read_rows(write(tmp_path / name, text)))
    assert [list(row.values()) for _, row in found] == [[f"a{mark}b", "r, s; t", None]]
    assert found[0][0] == f"line {text.count(chr(10))}"


def test_a_csv_of_one_column(tmp_path):
    assert rows_of(write(tmp_path / "a.csv", "text\nhello; you\n")) == [{"text": "hello; you"}]
    assert rows_of(write(tmp_path / "a.csv", '"text"\n"a, b"\n')) == [{"text": "a, b"}]


def test_csv_cells_may_hold_quotes_and_newlines(tmp_path):
    path = write(tmp_path / "a.csv", 'query,response,system\n"a ""b""\nc",d\nx,,s\n1,2,3,4\n')
    assert list(read_rows(path)) == [
        ("line 2", {"query": 'a "b"\nc', "response": "d", "system": None}),
        ("line 4", {"query": "x", "response": None, "system": "s"}),
        ("line 5", BadLine("4 cells where the header has 3; quote a cell that holds a ','", "1,2,3,4")),
    ]


def test_a_csv_cell_may_be_large(tmp_path):
    path = write(tmp_path / "a.csv", "query,response\nq," + "x" * 200_000 + "\n")
    assert len(rows_of(path)[0]["response"]) == 200_000


def test_bad_lines_keep_their_place(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"a": 1}\nnot json\n\n[1]\n7\n{"a": 2}\n' + "[" * 100_000 + "\n")
    found = list(read_rows(path))
    assert [location for location, _ in found] == ["line 1", "line 2", "line 4", "line 5", "line 6", "line 7"]
    assert found[1][1] == BadLine("not JSON (Expecting value, column 1)", "not json")
    assert found[2][1] == BadLine("not a JSON object but a list", "[1]")
    assert found[3][1] == BadLine("not a JSON object but a number or a boolean", "7")
    assert found[4][1] == {"a": 2}
    assert "too deeply" in found[5][1].reason


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_bad_first_line_among_good_ones(tmp_path, name):
    found = rows_of(write(tmp_path / name, '{"a": 1,,}\n{"a": 2}\n'))
    assert isinstance(found[0], BadLine)
    assert found[1:] == [{"a": 2}]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 50, 1 << 20])
def test_an_array_read_in_chunks_is_whole(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("llmtune.data.json_stream.CHUNK_BYTES", chunk)
    rows = [{"query": "é你😀" * n, "response": "x", "n": 12345.5} for n in range(6)]
    for indent, ascii_only in ((None, False), (2, True)):
        path = write(tmp_path / "a.json", json.dumps(rows, indent=indent, ensure_ascii=ascii_only))
        assert rows_of(path) == rows


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 6])
def test_number_in_an_array_is_not_cut(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("llmtune.data.json_stream.CHUNK_BYTES", chunk)
    found = rows_of(write(tmp_path / "a.json", '[12345, {"a": 1}]'))
    assert found == [BadLine("not a JSON object but a number or a boolean", "12345"), {"a": 1}]


TRICKY = [{"a": "}{"}, {"b": 'say "}{" or \\'}, {"c": {"d": [{}, {}]}}, {"e": "你}{\u2028"}]


@pytest.mark.parametrize("between", ["", " ", "\n", "\n\n"])
@pytest.mark.parametrize("chunk", [1, 3, 16, 1 << 20])
def test_concatenated_objects_are_separate_rows(tmp_path, monkeypatch, between, chunk):
    """Strings that hold `}{` are not taken apart, wherever a piece of the file ends."""
    monkeypatch.setattr("llmtune.data.json_stream.CHUNK_BYTES", chunk)
    text = between.join(json.dumps(row, ensure_ascii=False) for row in TRICKY)
    assert rows_of(write(tmp_path / "a.jsonl", text)) == TRICKY
    assert rows_of(write(tmp_path / "b.jsonl", json.dumps(ROWS[0]) + "\n" + text)) == [ROWS[0], *TRICKY]


def test_concatenated_objects_are_located(tmp_path):
    text = '{"a": 1}\n{"b": 2}{"c": 3}\n{"d": 4}{"e": \n{"f": 5} x\n{"g": 6}[]\n'
    found = list(read_rows(write(tmp_path / "a.jsonl", text)))
    assert found[:3] == [("line 1", {"a": 1}), ("line 2, object 1", {"b": 2}), ("line 2, object 2", {"c": 3})]
    assert [location for location, row in found[3:]] == ["line 3", "line 4", "line 5"]
    assert all(isinstance(row, BadLine) for _, row in found[3:])


def test_a_broken_object_after_concatenated_ones_is_an_error(tmp_path):
    message = error_of(write(tmp_path / "a.jsonl", '{"a": 1}{"b": 2}\n{"c": '.replace("\n", "")))
    assert "is not JSON at line 1" in message


def test_glued_memory_is_flat(tmp_path):
    path = tmp_path / "a.jsonl"
    row = json.dumps({"query": "q" * 500, "response": "r" * 500})
    with path.open("w") as file:
        for _ in range(20_000):
            file.write(row)
    assert traced_peak(lambda: count_rows(path)) < path.stat().st_size / 2


def test_array_memory_is_flat(tmp_path):
    path = tmp_path / "a.json"
    with path.open("w") as file:
        file.write("[" + ",".join(json.dumps({"text": "x" * 1000}) for _ in range(20_000)) + "]")
    assert traced_peak(lambda: count_rows(path)) < path.stat().st_size / 2


def count_rows(path: Path) -> None:
    assert sum(1 for _ in read_rows(path)) == 20_000


def test_a_folder_gives_its_data_files_in_order(tmp_path):
    write(tmp_path / "b.csv", "query,response\nq,r\n")
    write(tmp_path / "README.md", "about")
    write(tmp_path / ".hidden.jsonl", "nothing")
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "x.jsonl", '{"text": "t"}\n')
    assert list(read_rows(tmp_path)) == [
        ("a/x.jsonl line 1", {"text": "t"}),
        ("b.csv line 2", {"query": "q", "response": "r"}),
    ]


def test_a_folder_without_data_is_an_error(tmp_path):
    write(tmp_path / "README.md", "about")
    assert "holds no data file" in error_of(tmp_path)


def test_a_missing_file_suggests_the_nearest(tmp_path):
    write(tmp_path / "alpaca_en.jsonl", LINES)
    assert f"Did you mean {tmp_path / 'alpaca_en.jsonl'}?" in error_of(tmp_path / "alpaca-en.json")
    assert "there is no folder" in error_of(tmp_path / "none" / "a.json")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.json.gz"])
def test_an_empty_file_is_an_error(tmp_path, name, content):
    assert "is empty" in error_of(write(tmp_path / name, content))


def test_empty_in_other_ways(tmp_path):
    assert "is empty" in error_of(write(tmp_path / "a.json", "[]"))
    assert "is empty" in error_of(write(tmp_path / "a.csv", "query,response\n"))
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert "is empty" in error_of(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["a.xlsx", "noextension"])
def test_an_unknown_extension_lists_the_known(tmp_path, name):
    message = error_of(write(tmp_path / name, "x"))
    for extension in files.EXTENSIONS:
        assert extension in message


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.jsonl", "hello\nworld\n", 1),
        ("a.json", "hello", 1),
        ("a.json", '{\n "a": 1,\n "b" 2\n}\n', 3),
        ("a.json", '[\n{"a": 1},\n{"a": x}\n]\n', 3),
        ("a.json", '[\n{"a": 1}\n{"a": 2}\n]\n', 3),
        ("a.json", '[\n{"a": 1},\n{"a": 2}\n', 4),
        ("a.json", '[\n{"a": 1}\n]\n7\n', 4),
        ("a.jsonl", "[\n{", 2),
    ],
)
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_broken_json_is_located(tmp_path, name, content, line, packed):
    assert f"is not JSON at line {line}:" in error_of(write(tmp_path / (name + packed), content))


def test_fault_in_an_array_is_found_early(tmp_path):
    path = write(tmp_path / "a.json", '[{"a": 1},\n{"a": ,}' + ',\n{"a": "' + "x" * 100 + '"}' * 10 + "]")
    assert "line 2" in error_of(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a b.jsonl.gz"])
def test_a_nul_byte_is_located_and_its_fix_works(tmp_path, name):
    message = error_of(write(tmp_path / name, b'[\n{"a": "\0"}]'))
    assert "NUL byte (line 2, byte 9)" in message
    assert _repaired(message, tmp_path) == b'[\n{"a": ""}]'


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a b.txt", "a.json.gz"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ['{"query": "q"}\n', "你好世界" * 20 + "\n你好\n"])
def test_the_fix_of_a_wide_encoding_works(tmp_path, name, encoding, text):
    """The command that the error names makes the text that was meant; no NUL is cut out of a wide one."""
    message = error_of(write(tmp_path / name, text.encode(encoding)))
    if encoding.startswith("utf-16-") and not text.isascii():
        return  # nothing shows it: no mark, and hardly a zero
    assert _repaired(message, tmp_path).decode() == text


def _repaired(message: str, folder: Path) -> bytes:
    command = message.partition("it: ")[2]
    assert command.count(">") == 1
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    return (folder / shlex.split(command)[-1]).read_bytes()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.json.gz"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_wrong_bytes_are_located(tmp_path, name, bom):
    message = error_of(write(tmp_path / name, bom + b'[\n{"a": "' + "你好".encode("gb18030") + b'"}]'))
    assert f"not UTF-8 (line 2, byte {9 + len(bom)})" in message
    assert "iconv -f GB18030 -t UTF-8" in message


def test_a_broken_gzip_file_is_an_error(tmp_path):
    whole = gzip.compress(LINES.encode() * 100)
    for raw in (b"not gzip", whole[: len(whole) // 2], whole[:-8] + b"12345678"):
        path = tmp_path / "a.jsonl.gz"
        path.write_bytes(raw)
        assert "broken gzip" in error_of(path)


def test_a_broken_parquet_file_is_an_error(tmp_path):
    assert "broken parquet" in error_of(write(tmp_path / "a.parquet", b"PAR1 nothing"))
    assert "broken parquet" in error_of(write(tmp_path / "a.parquet.gz", b"PAR1 nothing"))


def test_csv_errors_are_located(tmp_path):
    assert "'a' twice" in error_of(write(tmp_path / "a.csv", "a,b,a\n1,2,3\n"))
    assert "line 3: a quotation mark" in error_of(write(tmp_path / "a.csv", 'a,b\n1,2\n"x,3\n4,5\n'))
    found = rows_of(write(tmp_path / "a.csv", 'a,b\n"x"y,3\n4,5\n'))
    assert isinstance(found[0], BadLine)
    assert found[1] == {"a": "4", "b": "5"}


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_whole_text_file_as_one_row(tmp_path, packed):
    path = write(tmp_path / ("a.txt" + packed), "\n one\r\n\n  two \n\n")
    assert list(read_rows(path, "file")) == [("whole file", {"text": "\n one\r\n\n  two "})]


def test_files_of_a_folder_as_one_row_each(tmp_path):
    for name in ("b", "a"):
        write(tmp_path / f"{name}.txt", f"{name}\n{name}\n")
    write(tmp_path / "c.jsonl", '{"text": "c"}\n{"text": "d"}\n')
    found = [(place, row["text"]) for place, row in read_rows(tmp_path, "file")]
    assert found == [("a.txt whole file", "a\na"), ("b.txt whole file", "b\nb"), ("c.jsonl line 1", "c"),
                     ("c.jsonl line 2", "d")]  # fmt: skip


def test_a_blank_text_file_is_no_row(tmp_path):
    with pytest.raises(DataError, match="it has no rows"):
        list(read_rows(write(tmp_path / "a.txt", " \n\n"), "file"))
