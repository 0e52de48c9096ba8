"""The cache of rows: used, damaged, raced for, and sampled alike by every version."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from llmtune.data.info import DATASET_MAPPING, register_dataset
from llmtune.data.loading import load_source, rules_of
from llmtune.data.mixing import get_dataset
from llmtune.data.reading import read_parts
from llmtune.data.row_cache import row_folder
from llmtune.data.streaming import RecordStream
from llmtune.errors import DataError
from llmtune.utils.files import cache_root

from .made import DAMAGED, write

GOOD = {"instruction": "q", "input": "", "output": "r", "id": 7}


def test_cache_is_used_and_overwritten(tmp_path, monkeypatch):
    name = write(tmp_path / "cache.jsonl", [GOOD, {"text": "only in this test"}])
    first = load_source(name)
    file = first.train.cache_files[0]["filename"]
    assert str(cache_root()) in file
    with monkeypatch.context() as patch:
        patch.setattr("llmtune.data.loading.read_parts", lambda *_, **__: pytest.fail("read again"))
        again = load_source(name)
    assert again.train._fingerprint == first.train._fingerprint
    assert again.train.to_list() == first.train.to_list()
    read: list[object] = []

    def noted(parts, *more, **rest):
        read.append(parts)
        return read_parts(parts, *more, **rest)

    monkeypatch.setattr("llmtune.data.loading.read_parts", noted)
    assert load_source(name, overwrite_cache=True).train.to_list() == first.train.to_list()
    assert len(read) == 1
    assert first.train.to_list() == again.train.to_list()
    assert not list((cache_root() / "rows").glob(".*"))


DAMAGE = DAMAGED | {
    "other_types": lambda raw: b'{"rows.arrow": {"a": 1}, "report.json": [null, "x"], "rows_read": "x"}',
}


@pytest.mark.parametrize("name", ["rows.arrow", "report.json", "seal.json"])
@pytest.mark.parametrize("damage", [*DAMAGE, "missing", "a folder"])
def test_a_damaged_cache_is_read_again(tmp_path, monkeypatch, name, damage, capsys):
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path / "cache"))
    source = write(tmp_path / "a.jsonl", [GOOD, {"text": "t"}, {"foo": 1}])
    whole = load_source(source)
    folder = row_folder(whole.train._fingerprint)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    rows = whole.train.to_list()
    (folder / name).unlink()
    if damage in DAMAGE:
        (folder / name).write_bytes(DAMAGE[damage](before[name]))
    elif damage == "a folder":
        (folder / name).mkdir()
    capsys.readouterr()
    again = load_source(source)
    assert f"{source}: its cached rows are damaged; reading them again\n" in capsys.readouterr().err
    assert (again.train.to_list(), again.report) == (rows, whole.report)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    load_source(source)
    assert "are damaged" not in capsys.readouterr().err
    assert load_source(source, overwrite_cache=True).train.to_list() == rows


@pytest.mark.parametrize("make", [lambda path: path.write_text("x"), lambda path: path.mkdir()])
def test_something_else_in_the_place_of_the_rows(tmp_path, monkeypatch, make):
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path / "cache"))
    source = write(tmp_path / "a.jsonl", [GOOD])
    key = load_source(source).train._fingerprint
    shutil.rmtree(row_folder(key))
    make(row_folder(key))
    assert len(load_source(source).train) == 1


def test_filled_rows_are_normalised_too(tmp_path, monkeypatch):
    """Every way into the cache, not that of files alone."""
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path / "cache"))
    source = write(tmp_path / "a.jsonl", [{"query": "{{NAME}}?", "response": "{{NAME}}"}])
    register_dataset("t-made", get_function=lambda: [GOOD], replace=True)

    def contents() -> list[object]:
        filled = get_dataset(source, dataset_test_ratio=0, model_name="Tiny")[0]
        head = RecordStream([source]).head(1)
        made = get_dataset("t-made", dataset_test_ratio=0)[0]
        return [filled.to_list(), head.to_list(), made.to_list()]

    before = contents()
    assert before[0][0]["messages"][1]["content"] == "Tiny"
    for file in [*(cache_root() / "rows").glob("*/rows.arrow")]:
        file.write_bytes(bytes(100))
    assert contents() == before


def test_strict_stops_at_the_first_bad_row(tmp_path, monkeypatch):
    def rows():
        yield "line 1", {"foo": 1}
        pytest.fail("read on")

    monkeypatch.setattr("llmtune.data.loading.parts_of", lambda *_, **__: [rows])
    with pytest.raises(DataError, match="line 1: it has no known format"):
        load_source(write(tmp_path / "a.jsonl", [{"foo": 1}]), strict=True)


def test_content_decides_not_the_name(tmp_path):
    one = load_source(write(tmp_path / "a.jsonl", [GOOD]))
    other = load_source(write(tmp_path / "b.jsonl", [GOOD]))
    changed = load_source(write(tmp_path / "a.jsonl", [GOOD, GOOD]))
    assert one.train._fingerprint == other.train._fingerprint != changed.train._fingerprint
    assert len(changed.train) == 2


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(Exception, match="Set LLMTUNE_CACHE to another folder"):
        load_source(write(tmp_path / "a.jsonl", [GOOD]))


RACE = """
import sys
from llmtune.data.loading import load_source
from llmtune.data.reading import read_parts
for _ in range(4):
    train = load_source(sys.argv[1], overwrite_cache=True).train
print(len(train), train._fingerprint)
"""


@pytest.mark.medium
def test_processes_race_for_one_key(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path / "cache"))
    name = write(tmp_path / "race.jsonl", [GOOD] * 1000)
    command = [sys.executable, "-c", RACE, name]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0] * 4
    assert len(outputs) == 1
    assert outputs.pop().startswith("1000 ")
    assert [path.name for path in (cache_root() / "rows").iterdir() if path.name.startswith(".")] == []


def test_a_new_version_samples_the_same_rows(tmp_path, monkeypatch):
    """Else a run that is resumed after an upgrade would go on with other rows."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"query": "q{n}", "response": "a"}}\n' for n in range(50)))
    before = get_dataset([str(file)], train_dataset_sample=10, dataset_test_ratio=0.1)
    monkeypatch.setattr("llmtune.data.row_cache.FORMATS_VERSION", 1_000_000)
    after = get_dataset([str(file)], train_dataset_sample=10, dataset_test_ratio=0.1)
    assert [list(part) for part in before] == [list(part) for part in after]
    assert row_folder("x").name == "x-1000000"


def test_rows_of_the_catalogue_are_drawn_by_names_of_functions_not_by_their_code(monkeypatch):
    key = next(key for key, info in DATASET_MAPPING.items() if isinstance(info.preprocess, str))
    before = rules_of(key, DATASET_MAPPING[key])
    monkeypatch.setattr("llmtune.data.loading.code_version", lambda function: "moved, or changed")
    assert rules_of(key, DATASET_MAPPING[key]).version == before.version
