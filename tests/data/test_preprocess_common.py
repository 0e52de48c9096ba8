"""What a preprocess function may do, whoever registers it; filters and bad rows are kept apart."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from llmtune.data.info import DATASET_MAPPING, DatasetInfo, register_dataset
from llmtune.data.loading import load_source
from llmtune.data.preprocess.common import Drop, code_version, preprocess_row, text_of
from llmtune.data.rows import LoadReport
from llmtune.data.streaming import RecordStream
from llmtune.errors import DataError, LlmtuneError, RowError, UsageError

PAIR = {"query": "q", "response": "r"}


def test_what_it_may_return():
    assert preprocess_row(dict, PAIR) == [PAIR]
    assert preprocess_row(lambda row: [row, row], PAIR) == [PAIR, PAIR]
    assert preprocess_row(lambda row: (), PAIR) == []
    assert preprocess_row(lambda row: Drop("why"), PAIR) == Drop("why")
    assert preprocess_row(lambda row: None, PAIR) == Drop("dropped by its preprocess function")


@pytest.mark.parametrize("made", ["text", 1, [PAIR, None]])
def test_what_it_may_not_return(made):
    with pytest.raises(RowError, match=r"returned (text|a number|a list) for it, not a row or a list of rows"):
        preprocess_row(lambda row: made, PAIR)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda row: row["nothing"], "there is no column 'nothing'"),
        (lambda row: row["query"].foo, "AttributeError"),
        (lambda row: int(row["query"]), "ValueError: invalid literal"),
        (lambda row: row["query"] + 1, "TypeError"),
        (lambda row: [][0], "IndexError"),
    ],
)
def test_it_trips_over_a_row(function, reason):
    with pytest.raises(RowError, match=reason):
        preprocess_row(function, PAIR)


def test_memory_errors_are_not_hidden():
    def function(row):
        raise MemoryError

    with pytest.raises(MemoryError):
        preprocess_row(function, PAIR)


def test_text_of_names_a_missing_or_wrong_column():
    assert text_of({"a": "x", "b": 2}, "b") == "2"
    with pytest.raises(RowError, match="column 'c' is missing or null; the row has 'a'"):
        text_of({"a": "x", "c": None}, "c")
    with pytest.raises(RowError, match="holds a list, not text"):
        text_of({"a": ["x"]}, "a")


# In the report


def even(row):
    if row["n"] % 2:
        return Drop("odd")
    if row["n"] == 4:
        raise RowError("four")
    return [PAIR] * (row["n"] // 2)


def rows(*numbers: int):
    return [{"n": n} for n in numbers]


def test_filters_are_no_faults(capsys):
    register_dataset("t-even", get_function=lambda: rows(1, 2, 3, 6), preprocess=even, replace=True)
    loaded = load_source("t-even", strict=True)
    assert loaded.report == LoadReport(
        "t-even",
        rows_read=4,
        rows_kept=4,
        filtered={"odd": 2},
        shapes={"query-response": 4},
        columns={"query-response": ["query", "response"]},
    )
    assert capsys.readouterr().err == (
        "t-even: 4 rows, format query-response (query/response); filtered out 2 of 4 (odd 2)\n"
    )


def test_faults_are_no_filters(capsys):
    register_dataset("t-four", get_function=lambda: rows(1, 2, 4), preprocess=even, replace=True)
    loaded = load_source("t-four")
    assert (loaded.report.filtered, loaded.report.bad_rows, loaded.report.rows_kept) == ({"odd": 1}, 1, 1)
    told = capsys.readouterr().err
    assert "filtered out 1 of 3 (odd 1)" in told
    assert 'warning: t-four: 1 of 3 rows is bad and skipped; first: row 3: four. The row: {"n": 4}' in told
    with pytest.raises(DataError, match=r"t-four, row 3: four\."):
        load_source("t-four", strict=True)


def test_filtering_every_row_is_an_error():
    register_dataset("t-odd", get_function=lambda: rows(1, 3), preprocess=even, replace=True)
    with pytest.raises(DataError, match=r"none of its 2 rows can be used; filtered out 2 of 2 \(odd 2\)"):
        load_source("t-odd")


def _raises(kind: type[BaseException]):
    def function(*_: object) -> object:
        raise kind("two\nlines")

    return function


@pytest.mark.parametrize("kind", [RuntimeError, ZeroDivisionError, AssertionError, RecursionError, OSError, SystemExit])
def test_a_preprocess_function_that_raises(kind):
    """The row and the function are named, whatever it raises; other rows go on."""
    function = _raises(kind)
    register_dataset(
        "t-raises",
        get_function=lambda: [{"n": 1}, PAIR],
        preprocess=lambda row: function() if "n" in row else row,
        replace=True,
    )
    bad = load_source("t-raises").report.first_bad[0]
    assert bad.location == "row 1"
    assert re.search(
        rf"function .*test_preprocess_common\..*<lambda> fails on it: {kind.__name__}: two lines", bad.reason
    )


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, SystemExit])
def test_a_dataset_function_that_raises_is_named(kind):
    register_dataset("t-fails", get_function=_raises(kind), replace=True)
    for load in (load_source, lambda name: RecordStream([name])):
        with pytest.raises(DataError, match=r"'t-fails': its function .*_raises.<locals>.function fails: ") as caught:
            load("t-fails")
        assert "\n" not in str(caught.value)


def test_rows_that_cannot_be_read():
    class Rows(list):
        def __iter__(self):
            yield PAIR
            raise RuntimeError("no more")

    register_dataset("t-rows", get_function=lambda: Rows([PAIR] * 2), replace=True)
    with pytest.raises(DataError, match="'t-rows': row 2 cannot be read: RuntimeError: no more"):
        load_source("t-rows")
    register_dataset("t-none", get_function=lambda: [PAIR, None], replace=True)
    with pytest.raises(DataError, match="'t-none': row 2 is NoneType, not a dict"):
        load_source("t-none")


def test_columns_first_then_preprocess(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"m": 2}\n{"m": 3}\n')
    info = DatasetInfo(path=str(tmp_path / "a.jsonl"), columns={"m": "n"}, preprocess=even)
    register_dataset("t-renamed", info, replace=True)
    assert len(load_source("t-renamed").train) == 1


def test_the_cache_knows_the_function(tmp_path):
    """Rows were made by another function, or none: they must be made again."""
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(PAIR) + "\n")
    found = []
    for function in (None, lambda row: [row] * 2, lambda row: [row] * 3):
        register_dataset("t-cached", DatasetInfo(path=str(file), preprocess=function), replace=True)
        found.append(len(load_source("t-cached").train))
        report = load_source("t-cached").report
        assert (report.rows_read, report.rows_kept) == (1, found[-1])
    assert found == [1, 2, 3]


def test_code_version_follows_function_and_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "t_pre.py").write_text("def f(row): return row\ndef g(row): return row\n")
    from importlib import reload

    import t_pre

    before = code_version(t_pre.f)
    assert before == code_version(t_pre.f) != code_version(t_pre.g)
    (tmp_path / "t_pre.py").write_text("def f(row): return [row]  # longer\ndef g(row): return row\n")
    assert code_version(reload(t_pre).f) != before
    typed = {}
    exec("f = lambda row: 1\ng = lambda row: 2", typed)
    assert code_version(typed["f"]) != code_version(typed["g"])


def test_code_version_is_the_same_in_every_process():
    code = (
        "from llmtune.data.preprocess.common import code_version\n"
        "print(code_version(lambda row: [x for x in row if x in {'a', 'b', 'c', 'd'} or (lambda: 1)()]))"
    )
    seeds = ({**os.environ, "PYTHONHASHSEED": seed} for seed in "12")
    runs = [subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True) for env in seeds]
    assert runs[0].stdout == runs[1].stdout != b""


def test_wrong_references_are_named():
    register_dataset("t-nowhere", get_function=lambda: rows(2), preprocess="llmtune.nothing:f", replace=True)
    with pytest.raises(LlmtuneError, match="The preprocess function of the dataset 't-nowhere' names"):
        load_source("t-nowhere")
    for fields in ({}, {"path": "a", "dataset_id": "a/b"}, {"get_function": dict, "hf_dataset_id": "a/b"}):
        with pytest.raises(UsageError, match="a path, or a hub id"):
            DatasetInfo(**fields)
    register_dataset("t-hub", dataset_id="a/b", hf_dataset_id="c/d", replace=True)
    assert DATASET_MAPPING["t-hub"].get_function is None
