"""What a mix promises: which rows, how many, the same everywhere."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtune.data.canonical import from_record
from llmtune.data.formats import to_conversation
from llmtune.data.info import DatasetInfo, register_dataset
from llmtune.data.mixing import get_dataset
from llmtune.data.streaming import RecordStream
from llmtune.errors import RowError, UsageError


def rows_named(name: str, count: int) -> list[dict[str, str]]:
    return [{"query": f"{name}{number}", "response": "r"} for number in range(count)]


for _name, _count in (("a", 200), ("b", 50), ("one", 1), ("two", 2)):
    register_dataset(f"mix-{_name}", lambda name=_name, count=_count: rows_named(name, count))
register_dataset("mix-shipped", lambda: (rows_named("s", 30), rows_named("v", 20)))
register_dataset("mix-who", lambda: [{"query": f"q{n}", "response": "{{NAME}} by {{AUTHOR}}"} for n in range(3)])


def ids(dataset) -> list[str]:
    return [] if dataset is None else [row["messages"][0]["content"] for row in dataset]


def named(name: str, count: int) -> list[str]:
    return [f"{name}{number}" for number in range(count)]


@pytest.mark.medium
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(
        st.sampled_from(["a", "b", "one", "two", "shipped", "a#37", "b#49"]), min_size=1, max_size=3, unique=True
    ),
    ratio=st.sampled_from([0.0, 0.001, 0.01, 0.3, 0.99]),
    seed=st.integers(0, 2**32),
    train_sample=st.sampled_from([-1, 0, 1, 20, 10_000]),
    val_sample=st.sampled_from([None, -1, 0, 1, 5, 10_000]),
)
def test_mixing_keeps_its_promised_counts(names, ratio, seed, train_sample, val_sample):
    sizes = {"a": 200, "b": 50, "one": 1, "two": 2, "shipped": 30, "a#37": 37, "b#49": 49}
    train, val = get_dataset(
        [f"mix-{name}" for name in names],
        dataset_test_ratio=ratio,
        dataset_seed=seed,
        train_dataset_sample=train_sample,
        val_dataset_sample=val_sample,
    )
    held = {
        name: 0 if ratio == 0 or size < 2 or name == "shipped" else min(max(1, int(size * ratio)), size - 1)
        for name, size in sizes.items()
    }
    whole_train = sum(sizes[name] - held[name] for name in names)
    split_off = sum(held[name] for name in names)
    shipped = 20 if "shipped" in names else 0
    assert len(train) == (whole_train if train_sample < 0 else min(train_sample, whole_train))
    if val_sample is None and train_sample >= 0:
        split_off = min(split_off, max(1, int(train_sample * ratio)))
    whole_val = split_off + shipped
    expected = whole_val if val_sample in (None, -1) else min(val_sample, whole_val)
    assert (0 if val is None else len(val)) == expected
    assert val is None or len(val) > 0
    found = ids(train) + ids(val)
    if not {"a", "a#37"} <= set(names) and not {"b", "b#49"} <= set(names):
        assert len(set(found)) == len(found)
    again = get_dataset(
        [f"mix-{name}" for name in names],
        dataset_test_ratio=ratio,
        dataset_seed=seed,
        train_dataset_sample=train_sample,
        val_dataset_sample=val_sample,
    )
    assert ids(again[0]) == ids(train)
    assert again[0]._fingerprint == train._fingerprint


def test_split_is_whole_and_disjoint():
    train, val = get_dataset("mix-a", dataset_test_ratio=0.1)
    assert len(val) == 20
    assert sorted(ids(train) + ids(val)) == sorted(named("a", 200))
    assert ids(get_dataset("mix-a", dataset_test_ratio=0.1, dataset_seed=1)[1]) != ids(val)


def test_a_source_splits_alike_in_any_company():
    alone = set(ids(get_dataset("mix-a")[1]))
    mixed = {name for name in ids(get_dataset(["mix-b", "mix-shipped", "mix-a"])[1]) if name.startswith("a")}
    assert alone == mixed


def test_sources_are_sampled_independently():
    register_dataset("mix-a-too", lambda: rows_named("z", 200), replace=True)
    held = ids(get_dataset(["mix-a", "mix-a-too"], dataset_test_ratio=0.1)[1])
    numbers = [{name[1:] for name in held if name[0] == source} for source in "az"]
    assert numbers[0] != numbers[1]


def test_samples_are_drawn_from_all_rows():
    drawn = ids(get_dataset("mix-a#50", dataset_test_ratio=0)[0])
    assert len(drawn) == 50
    assert max(int(name[1:]) for name in drawn) > 150
    both = ids(get_dataset(["mix-a", "mix-b"], dataset_test_ratio=0, train_dataset_sample=100)[0])
    assert {name[0] for name in both} == {"a", "b"}


def test_asking_for_too_many_rows_gives_all(capsys):
    train, _ = get_dataset("mix-b#1000", dataset_test_ratio=0)
    assert len(train) == 50
    assert "warning: mix-b#1000: it has only 50 rows; all of them are used" in capsys.readouterr().err


def test_implied_cap_does_not_warn(capsys):
    get_dataset("mix-b", train_dataset_sample=49, dataset_test_ratio=0.02)
    assert "warning" not in capsys.readouterr().err


def test_validation_follows_ratio_and_shipped_parts():
    train, val = get_dataset("mix-shipped", train_dataset_sample=5)
    assert (len(train), ids(val)) == (5, named("v", 20))
    assert get_dataset("mix-one")[1] is None
    assert get_dataset("mix-a", dataset_test_ratio=0)[1] is None
    assert get_dataset("mix-a", val_dataset_sample=0)[1] is None
    assert len(get_dataset("mix-two")[1]) == 1


def test_val_dataset_replaces_every_other_validation(capsys):
    train, val = get_dataset(["mix-a", "mix-shipped"], val_dataset=["mix-b"])
    assert (ids(train), ids(val)) == (named("a", 200) + named("s", 30), named("b", 50))
    assert "20 validation rows shipped with the sources are not used" in capsys.readouterr().err
    assert len(get_dataset("mix-a", val_dataset="mix-b#7", train_dataset_sample=5)[1]) == 7
    assert len(get_dataset("mix-a", val_dataset=["mix-b"], val_dataset_sample=9)[1]) == 9


def test_names_are_split_at_commas(tmp_path):
    expected = named("a", 200) + named("b", 50)
    assert ids(get_dataset("mix-a,mix-b", dataset_test_ratio=0)[0]) == expected
    assert ids(get_dataset(["mix-a, mix-b"], dataset_test_ratio=0)[0]) == expected
    assert len(get_dataset("mix-a#10,mix-b#10", dataset_test_ratio=0)[0]) == 20
    path = tmp_path / "x,y.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_named("c", 3)))
    assert ids(get_dataset(str(path), dataset_test_ratio=0)[0]) == named("c", 3)
    assert len(get_dataset(f"{path}#2", dataset_test_ratio=0)[0]) == 2


def test_the_models_name_fills_rows(capsys):
    train, _ = get_dataset("mix-who", dataset_test_ratio=0, model_name="Tiny", model_author=["作者", "Author"])
    assert train[0]["messages"][1]["content"] == "Tiny by Author"
    assert "filled the model's name and author into 3 rows" in capsys.readouterr().err
    get_dataset("mix-who", dataset_test_ratio=0, model_name="Tiny")
    assert "warning: mix-who: 3 rows hold {{NAME}} or {{AUTHOR}}" in capsys.readouterr().err


def test_default_names_of_the_dataset_fill_rows(tmp_path, capsys):
    """Where no flag names the model, the dataset's own names are filled in; where it has none, that is said."""
    made = [{"query": "q", "response": "{{NAME}} by {{AUTHOR}}"}]
    info = DatasetInfo(get_function=lambda: (made, made), default_name=("小一", "Tiny"), default_author=("Someone",))
    register_dataset("mix-default", info, replace=True)
    for flags, expected in (({}, "Tiny by Someone"), ({"model_name": "Other"}, "Other by Someone")):
        for part in get_dataset("mix-default", **flags):
            assert part[0]["messages"][1]["content"] == expected
        assert next(iter(RecordStream(["mix-default"], **flags)))["messages"][1]["content"] == expected
    assert "hold {{NAME}}" not in capsys.readouterr().err

    file = tmp_path / "a.jsonl"
    rows = [{"query": "q", "response": "{{NAME}}"}, {"query": "你是谁", "response": "{{NAME}}"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in (str(file), "mix-who"):
        get_dataset(name, dataset_test_ratio=0)
        told = capsys.readouterr().err
        assert (
            f"{name}: {2 if name == str(file) else 3} rows hold {{{{NAME}}}} or {{{{AUTHOR}}}}; give --model_name"
            in told
        )
    train, _ = get_dataset(str(file), dataset_test_ratio=0, model_name=["小一", "Tiny"])
    assert [row["messages"][1]["content"] for row in train] == ["Tiny", "小一"]
    assert "hold {{NAME}}" not in capsys.readouterr().err


def test_names_fill_thoughts(tmp_path, capsys):
    file = tmp_path / "a.jsonl"
    answer = {"role": "assistant", "content": "hi", "reasoning": "I am {{NAME}}"}
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "q"}, answer]}) + "\n")
    get_dataset(str(file), dataset_test_ratio=0)
    assert "1 rows hold {{NAME}}" in capsys.readouterr().err
    train, _ = get_dataset(str(file), dataset_test_ratio=0, model_name="Tiny")
    assert train[0]["messages"][1]["reasoning"] == "I am Tiny"


PATHS = ["a.jpg", "./a.jpg", "../up/a.jpg", "in/../a.jpg", " a.jpg ", "{folder}/a.jpg", "http://x/a.jpg"]


@pytest.mark.parametrize("path", PATHS)
def test_rows_with_images_are_rows_again(tmp_path, path):
    """A row that was loaded names its images from the root, and its text names them as the file did."""
    path = path.replace("{folder}", str(tmp_path))
    rows = [
        {"query": f"What does <img>{path}</img> show?", "response": "A cat."},
        {"query": f"<img>{path}</img><image>", "response": "Cats.", "images": ["b.jpg"]},
        {"messages": [{"role": "user", "content": "q", "images": ["c.jpg"]}, {"role": "assistant", "content": "r"}]},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded, _ = get_dataset(str(file), dataset_test_ratio=0)
    for row in loaded:
        assert to_conversation(row) == from_record(row)
        assert all(os.path.isabs(image) or "://" in image for image in row["images"])
    other = dict(loaded[0]) | {"images": [str(tmp_path / "b.jpg")]}
    with pytest.raises(RowError, match="1 image marks, and its images column has 1"):
        to_conversation(other)


@pytest.mark.parametrize(
    "wrong",
    [
        {"names": []},
        {"names": " , "},
        {"dataset_test_ratio": 1.0},
        {"dataset_test_ratio": -0.1},
        {"train_dataset_sample": -2},
        {"val_dataset_sample": -2},
        {"dataset_seed": -1},
    ],
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError):
        get_dataset(**{"names": "mix-a", **wrong})


def test_global_generators_are_left_alone():
    random.seed(0)
    np.random.seed(0)
    before = random.getstate(), np.random.get_state()[1].tobytes()
    get_dataset(["mix-a#20", "mix-b"], train_dataset_sample=30)
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before


@pytest.mark.medium
def test_processes_get_the_same_rows_and_fingerprint(tmp_path):
    """The token cache is keyed by the fingerprint: ranks, later runs and other hash seeds must find the same one."""
    for name in ("a", "b"):
        rows = "".join(json.dumps(row) + "\n" for row in rows_named(name, 40))
        (tmp_path / f"{name}.jsonl").write_text(rows)
    code = (
        "from llmtune.data.mixing import get_dataset\n"
        f"names = ['{tmp_path}/a.jsonl#30', '{tmp_path}/b.jsonl']\n"
        "t, v = get_dataset(names, dataset_test_ratio=0.2, train_dataset_sample=20)\n"
        "print(t._fingerprint, v._fingerprint, [r['messages'][0]['content'] for r in [*t, *v]])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "RANK": rank, "LLMTUNE_CACHE": str(tmp_path / f"cache{seed}")},
        ).stdout
        for seed, rank in (("1", "0"), ("2", "3"))
    }  # fmt: skip
    assert len(outputs) == 1
