"""Files of at most a given size, and an index that finds every tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmtune.errors import UsageError
from llmtune.merging.files import ShardWriter, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("7B", 7), ("1.5KB", 1500), (" 3 m ", 3 * 10**6), ("500MB", 5 * 10**8), ("2G", 2 * 10**9)],
)  # fmt: skip
def test_sizes_are_parsed(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0.9", "0GB", "-1", "GB", "2TB", "1,5GB", "1e9", "2 GB x", "nan"])
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="such as 2GB or 500MB"):
        parse_size(text)


def write(folder: Path, sizes: list[int], max_bytes: int) -> list[Path]:
    writer = ShardWriter(folder, max_bytes)
    for number, size in enumerate(sizes):
        writer.add(f"t{number}", torch.full((size,), number, dtype=torch.uint8))
    return writer.finish()


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([10, 90], [["t0", "t1"]]),  # just what a file may hold
        ([10, 91], [["t0"], ["t1"]]),
        ([40, 40, 40, 40], [["t0", "t1"], ["t2", "t3"]]),
        ([10, 500, 10, 10], [["t0"], ["t1"], ["t2", "t3"]]),  # larger than a file: alone
        ([500], [["t0"]]),
    ],
)
def test_no_file_is_larger_than_asked_but_for_one_large_tensor(tmp_path, sizes, expected):
    files = write(tmp_path, sizes, 100)
    assert [sorted(load_file(file)) for file in files] == expected
    for file in files:
        assert all(set(value.tolist()) == {int(name[1:])} for name, value in load_file(file).items())
    names = {file.name for file in files}
    if len(expected) == 1:
        assert names == {path.name for path in tmp_path.iterdir()} == {"model.safetensors"}
        return
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(sizes)}
    assert names == {f"model-{n + 1:05}-of-{len(expected):05}.safetensors" for n in range(len(expected))}
    assert {path.name for path in tmp_path.iterdir()} == {*names, "model.safetensors.index.json"}
    places = {name: file.name for file, part in zip(files, expected, strict=True) for name in part}
    assert index["weight_map"] == places
    assert list(index["weight_map"]) == sorted(places)


def test_a_view_is_written_as_what_it_shows(tmp_path):
    writer = ShardWriter(tmp_path, 10**6)
    whole = torch.arange(12.0).view(3, 4)
    writer.add("t", whole.t())
    (file,) = writer.finish()
    assert torch.equal(load_file(file)["t"], whole.t())
