"""Folders on this machine: which files are trained on, which are for validation, and which are neither."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from llmtune.data.info import DatasetInfo, register_dataset
from llmtune.data.items import local_parts
from llmtune.data.loading import load_source
from llmtune.data.mixing import get_dataset
from llmtune.data.streaming import RecordStream
from llmtune.errors import DataError

from .made import conversations_of


def lay_out(folder: Path, *names: str) -> Path:
    """A file of one row each: its own name is the question."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        is_text = file.suffix == ".txt"
        file.write_text(name if is_text else json.dumps({"query": name, "response": "r"}) + "\n")
    return folder


def named(dataset: datasets.Dataset | None) -> list[str]:
    return [] if dataset is None else [one.messages[0].content for one in conversations_of(dataset)]


@pytest.mark.parametrize(
    ("names", "train", "validation"),
    [
        (["a.jsonl", "b.jsonl"], ["a.jsonl", "b.jsonl"], []),
        (["train.jsonl", "test.jsonl"], ["train.jsonl"], []),
        (["train.jsonl", "validation.jsonl", "test.jsonl"], ["train.jsonl"], ["validation.jsonl"]),
        *((["my_train_1.jsonl", f"my-{word}.jsonl"], ["my_train_1.jsonl"], [f"my-{word}.jsonl"]) for word in
          ("validation", "valid", "val", "dev", "eval", "DEV")),
        (["train/a.jsonl", "dev/a.jsonl", "test/a.jsonl"], ["train/a.jsonl"], ["dev/a.jsonl"]),
        (["en/train.jsonl", "de/train.jsonl", "de/test.jsonl"], ["de/train.jsonl", "en/train.jsonl"], []),
        (["part1.jsonl", "part2.jsonl", "test.jsonl"], ["part1.jsonl", "part2.jsonl"], []),
        (["train.jsonl", "more.jsonl", "LICENSE.txt", "dev.jsonl"], ["more.jsonl", "train.jsonl"], ["dev.jsonl"]),
        (["train.txt", "more.txt", "test.txt"], ["more.txt", "train.txt"], []),
        (["poems.txt", "test.jsonl"], ["poems.txt"], []),
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00000-of-00001.jsonl"],
         ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"], []),
        (["train_sft-00000-of-00001.jsonl", "test_sft-00000-of-00001.jsonl"], ["train_sft-00000-of-00001.jsonl"], []),
        (["part-00000-of-00002.jsonl", "part-00001-of-00002.jsonl"],
         ["part-00000-of-00002.jsonl", "part-00001-of-00002.jsonl"], []),
        (["latest.jsonl", "contest.jsonl", "devices.jsonl"], ["contest.jsonl", "devices.jsonl", "latest.jsonl"], []),
        (["train/test_cases.jsonl", "train/b.jsonl"], ["train/b.jsonl", "train/test_cases.jsonl"], []),
        (["test.jsonl"], ["test.jsonl"], []),
        (["a.jsonl", "dataset_info.json", "dataset_dict.json", "state.json", "config.json"], ["a.jsonl"], []),
    ],
)  # fmt: skip
def test_names_say_the_part(tmp_path, names, train, validation):
    folder = lay_out(tmp_path / "test", *names)  # the name of the folder itself says nothing
    loaded = load_source(str(folder))
    assert (named(loaded.train), named(loaded.validation)) == (train, validation)
    assert [record["messages"][0]["content"] for record in RecordStream([str(folder)])] == train
    register_dataset("t-folder", DatasetInfo(path=str(folder)), replace=True)
    loaded = load_source("t-folder")
    assert (named(loaded.train), named(loaded.validation)) == (train, validation)


def test_a_shipped_part_is_the_validation(tmp_path, capsys):
    folder = lay_out(tmp_path, "train/a.jsonl", "train/b.jsonl", "dev.jsonl", "test.jsonl")
    train, validation = get_dataset(str(folder), dataset_test_ratio=0.5)
    assert (named(train), named(validation)) == (["train/a.jsonl", "train/b.jsonl"], ["dev.jsonl"])
    told = capsys.readouterr().err
    assert f"{folder}: for validation: dev.jsonl\n" in told
    assert f"{folder}: not trained on (test): test.jsonl\n" in told


def test_several_parts_and_none_to_train_on(tmp_path):
    lay_out(tmp_path, "dev.jsonl", "test.jsonl")
    with pytest.raises(DataError, match=r"has no training files \(validation: dev.jsonl; test: test.jsonl\)"):
        load_source(str(tmp_path))


def test_a_file_is_read_whatever_its_name(tmp_path):
    lay_out(tmp_path, "test.jsonl", "dev/train.jsonl")
    assert local_parts(tmp_path / "test.jsonl").train == (tmp_path / "test.jsonl",)
    assert named(load_source(str(tmp_path / "dev")).train) == ["dev/train.jsonl"]


def rows(name: str, count: int = 3) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"query": f"{name}{number}", "response": "r"} for number in range(count)])


def test_a_folder_of_save_to_disk(tmp_path):
    rows("q", 5).save_to_disk(tmp_path / "one", num_shards=2)
    (tmp_path / "one" / "cache-0123.arrow").write_bytes(b"what datasets keeps beside it")
    assert named(load_source(str(tmp_path / "one")).train) == [f"q{number}" for number in range(5)]


def test_a_folder_of_save_to_disk_with_parts(tmp_path):
    parts = {name: rows(name) for name in ("train", "validation", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "many")
    loaded = load_source(str(tmp_path / "many"))
    assert named(loaded.train) == ["train0", "train1", "train2"]
    assert named(loaded.validation) == ["validation0", "validation1", "validation2"]
    assert named(load_source(str(tmp_path / "many" / "test")).train) == ["test0", "test1", "test2"]


def test_selected_rows_are_saved_as_selected(tmp_path):
    rows("q", 5).select([4, 0]).save_to_disk(tmp_path / "some")
    assert named(load_source(str(tmp_path / "some")).train) == ["q4", "q0"]
