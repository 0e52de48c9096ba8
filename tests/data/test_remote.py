"""Datasets that lie on a hub, up to the tables that training gets; `conftest.Hub` stands in for the hub."""

from __future__ import annotations

import inspect

import pytest

from llmtune.data.canonical import from_record
from llmtune.data.info import DatasetInfo, register_dataset
from llmtune.data.items import check_items
from llmtune.data.loading import load_source
from llmtune.data.mixing import get_dataset
from llmtune.data.remote import HubOptions
from llmtune.errors import DataError
from llmtune.types import Message


def rows(count: int, name: str = "q"):
    return [{"query": f"{name}{n}", "response": f"r{n}"} for n in range(count)]


def queries(dataset) -> list[str]:
    return [from_record(row).messages[0].content for row in dataset]


def test_the_stand_in_fits():
    """What is called here is what the hub's own function takes."""
    from llmtune.hub.fetch import fetch_dataset

    taken = inspect.signature(fetch_dataset).parameters
    assert {"dataset_id", "use_hf", "token", "cache_dir", "allow_patterns"} <= set(taken)


# ms:: and hf::


@pytest.mark.parametrize("prefix", ["ms", "hf"])
def test_a_hub_item_is_fetched_from_its_hub(prefix, hub, write_lines, capsys, monkeypatch):
    monkeypatch.setenv("USE_HF", "0" if prefix == "hf" else "1")  # the item itself says which hub
    folder = hub.folder("org/name", use_hf=prefix == "hf")
    write_lines(folder / "train.jsonl", rows(5))
    check_items([f"{prefix}::org/name#3"])
    assert hub.asked == []
    train, validation = get_dataset([f"{prefix}::org/name#3"], dataset_test_ratio=0)
    assert hub.asked == [("org/name", prefix == "hf")]
    assert len(train) == 3
    assert set(queries(train)) <= {f"q{n}" for n in range(5)}
    assert validation is None
    assert capsys.readouterr().err == f"{prefix}::org/name: 5 rows, format query-response (query/response)\n"


def test_item_with_subset_and_validation(hub, write_lines):
    folder = hub.folder("org/name")
    for subset in ("en", "zh"):
        for split in ("train", "dev", "test"):
            write_lines(folder / subset / f"{split}.jsonl", rows(2, f"{subset}-{split}-"))
    train, validation = get_dataset("ms::org/name:zh")
    assert queries(train) == ["zh-train-0", "zh-train-1"]
    assert queries(validation) == ["zh-dev-0", "zh-dev-1"]
    with pytest.raises(DataError, match="no subset 'fr'"):
        get_dataset("ms::org/name:fr")


def test_the_only_split_is_trained_on(hub, write_lines):
    write_lines(hub.folder("org/one") / "validation.jsonl", rows(2))
    loaded = load_source("ms::org/one")
    assert len(loaded.train) == 2
    assert loaded.validation is None  # not the same rows twice
    for split in ("train_a", "train_b"):
        write_lines(hub.folder("org/two") / f"{split}-00000-of-00001.jsonl", rows(2))
    with pytest.raises(
        DataError, match="ms::org/two: expected train; the splits of the repository are: train_a, train_b"
    ):
        load_source("ms::org/two")


def test_hub_items_mix_with_files(hub, write_lines, tmp_path):
    write_lines(hub.folder("org/name") / "train.jsonl", rows(2))
    write_lines(tmp_path / "a.jsonl", rows(3, "a"))
    train, _ = get_dataset([f"ms::org/name,{tmp_path / 'a.jsonl'}"], dataset_test_ratio=0)
    assert queries(train) == ["q0", "q1", "a0", "a1", "a2"]


# Of the catalogue


def register(**fields) -> str:
    register_dataset("t-remote", DatasetInfo(**fields), replace=True)
    return "t-remote"


def test_the_flag_chooses_the_hub_before_the_environment(hub, write_lines, monkeypatch, capsys):
    key = register(dataset_id="org/ms", hf_dataset_id="org/hf")
    write_lines(hub.folder("org/ms") / "train.jsonl", rows(1))
    write_lines(hub.folder("org/hf", use_hf=True) / "train.jsonl", rows(1))
    load_source(key)
    load_source(key, hub=HubOptions(use_hf=True))
    monkeypatch.setenv("USE_HF", "true")
    load_source(key)
    get_dataset(key, use_hf=False)
    assert hub.asked == [("org/ms", False), ("org/hf", True), ("org/hf", True), ("org/ms", False)]
    assert "only" not in capsys.readouterr().err


@pytest.mark.parametrize("use_hf", [False, True, None])
def test_known_on_one_hub_only(use_hf, hub, write_lines, capsys):
    key = register(hf_dataset_id="org/hf") if not use_hf else register(dataset_id="org/ms")
    write_lines(hub.folder("org/ms") / "train.jsonl", rows(1))
    write_lines(hub.folder("org/hf", use_hf=True) / "train.jsonl", rows(1))
    load_source(key, hub=HubOptions(use_hf=use_hf))
    assert hub.asked == [("org/ms", False) if use_hf else ("org/hf", True)]
    warned = "warning: t-remote: known on" in capsys.readouterr().err
    assert warned == (use_hf is not None)  # nobody asked for the other hub


def test_options_reach_the_hub(hub, write_lines):
    key = register(dataset_id="org/ms", files=("a+b.jsonl",))
    write_lines(hub.folder("org/ms") / "a+b.jsonl", rows(1))
    get_dataset(key, hub_token="secret", cache_dir="/there")
    assert hub.options == {"token": "secret", "cache_dir": "/there", "allow_patterns": [r"a\+b\.jsonl"]}


def test_subsets_and_splits_in_order(hub, write_lines):
    key = register(dataset_id="org/ms", subsets=("b", "a"), train_splits=("train", "val"), val_splits=("test",))
    for subset in "ab":
        for split in ("train", "val", "test"):
            write_lines(hub.folder("org/ms") / subset / f"{split}.jsonl", rows(1, f"{subset}-{split}-"))
    loaded = load_source(key)
    assert queries(loaded.train) == ["b-train-0", "b-val-0", "a-train-0", "a-val-0"]
    assert queries(loaded.validation) == ["b-test-0", "a-test-0"]


def test_a_missing_split_warns(hub, write_lines, capsys):
    key = register(dataset_id="org/ms", train_splits=("train", "val"), val_splits=("test",))
    folder = hub.folder("org/ms")
    write_lines(folder / "train.jsonl", rows(2))
    write_lines(folder / "odd-00000-of-00001.jsonl", rows(2))
    assert load_source(key).validation is None
    told = capsys.readouterr().err
    assert "warning: t-remote: there is no split val (available: odd, train); continuing without it" in told
    assert "warning: t-remote: there is no split test (available: odd, train); continuing without it" in told


def test_one_split_serves_under_any_name(hub, write_lines):
    key = register(dataset_id="org/ms", train_splits=())
    write_lines(hub.folder("org/ms") / "test.jsonl", rows(2))
    assert len(load_source(key).train) == 2
    write_lines(hub.folder("org/ms") / "validation.jsonl", rows(2))
    with pytest.raises(DataError, match="expected a single split; the splits of the repository are: test, validation"):
        load_source(key)
    write_lines(hub.folder("org/ms") / "train.jsonl", rows(3))
    assert len(load_source(key).train) == 3


def test_second_run_reads_the_cache(hub, write_lines, monkeypatch):
    """What was fetched is known by its content, so the same files under another name are at hand too."""
    key = register(dataset_id="org/ms", preprocess="llmtune.data.preprocess.single_turn:alpaca")
    write_lines(hub.folder("org/ms") / "train.jsonl", [{"instruction": "i", "output": "o"}, {"instruction": "i"}])
    first = load_source(key)
    assert first.report.filtered == {"no output": 1}
    monkeypatch.setattr("llmtune.data.loading.split_parts", lambda *args: pytest.fail("read again"))
    second = load_source(key)
    assert second.train._fingerprint == first.train._fingerprint
    assert second.report == first.report
    monkeypatch.undo()


def test_changed_content_is_read_again(hub, write_lines):
    key = register(dataset_id="org/ms")
    write_lines(hub.folder("org/ms") / "train.jsonl", rows(2))
    before = load_source(key).train
    write_lines(hub.folder("org/ms") / "train.jsonl", rows(2, "x"))
    after = load_source(key).train
    assert queries(after) == ["x0", "x1"]
    assert before._fingerprint != after._fingerprint


def test_bad_rows_name_their_file(hub, write_lines, capsys):
    key = register(dataset_id="org/ms")
    write_lines(hub.folder("org/ms") / "data" / "train.jsonl", [*rows(1), "oops"])
    load_source(key)
    assert "first: data/train.jsonl line 2: not JSON" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"t-remote, data/train\.jsonl line 2: not JSON"):
        load_source(key, strict=True)


def test_own_sample_comes_from_all_rows(hub, write_lines, capsys):
    """As medical-mini-zh is defined; the first rows alone would be a biased part."""
    key = register(dataset_id="org/ms", sample=50, val_splits=("test",))
    write_lines(hub.folder("org/ms") / "train.jsonl", rows(1000))
    write_lines(hub.folder("org/ms") / "test.jsonl", rows(60))
    train, validation = get_dataset(key)
    drawn = [int(query[1:]) for query in queries(train)]
    assert len(set(drawn)) == 50
    assert max(drawn) > 800
    assert min(drawn) < 200
    assert len(validation) == 60
    assert "t-remote: sampled 50 of 1,000 rows, as the dataset is defined" in capsys.readouterr().err
    assert queries(get_dataset(key)[0]) == queries(train)
    assert queries(get_dataset(key, dataset_seed=7)[0]) != queries(train)
    few, _ = get_dataset(f"{key}#10")
    assert len(few) == 10
    assert set(queries(few)) <= set(queries(train))


def test_strict_allows_filtered_rows(hub, write_lines):
    key = register(dataset_id="org/ms", preprocess="llmtune.data.preprocess.single_turn:alpaca")
    write_lines(hub.folder("org/ms") / "train.jsonl", [{"instruction": "i", "output": "o"}, {"instruction": "i"}])
    loaded = load_source(key, strict=True)
    assert from_record(loaded.train[0]).messages == (Message("user", "i"), Message("assistant", "o", True))
    write_lines(hub.folder("org/ms") / "train.jsonl", [{"instruction": "i", "output": "o"}, {"output": ["o"]}])
    with pytest.raises(DataError, match="line 2"):
        load_source(key, strict=True)
