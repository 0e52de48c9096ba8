"""Rows with images from files: what is stored, what follows a picture that changes, one dataset of the catalogue."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llmtune.data.canonical import from_record
from llmtune.data.info import DATASET_MAPPING
from llmtune.data.mixing import get_dataset
from llmtune.errors import DataError
from llmtune.samples.store import encode_dataset
from llmtune.templates.chat import ChatTemplate

from ..tiny_vision import template_of


@pytest.fixture
def rows(tmp_path, pictures) -> Path:
    """A data file beside its pictures, named by relative paths."""
    folder = tmp_path / "data"
    shutil.copytree(pictures, folder / "pictures")
    lines = [
        {"query": "<image>What is it?", "response": "Red.", "images": ["pictures/red.png"]},
        {"query": "<img>pictures/blue.png</img>What is it?", "response": "Blue."},
        {"query": "What is 1 plus 2?", "response": "3."},
        {"query": "<image>And?", "response": "None.", "images": ["pictures/none.png"]},
    ]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def encoded(file: Path, tokenizer: Any, *, strict: bool = False) -> Any:
    dataset, _ = get_dataset([str(file)], dataset_test_ratio=0)
    return encode_dataset(dataset, template_of("qwen2-vl", tokenizer), strict=strict)


def test_the_store_keeps_paths(rows, eyes, capsys):
    store = encoded(rows, eyes())
    assert [sample.get("images") for sample in store] == [
        [str(rows.parent / "pictures/red.png")],
        [str(rows.parent / "pictures/blue.png")],
        None,
    ]
    told = capsys.readouterr().err
    assert "1 of 4 training rows" in told
    assert f"row 3: {rows.parent}/pictures/none.png: there is no such file" in told
    assert "takes text only" not in told
    with pytest.raises(DataError, match=r"none\.png: there is no such file"):
        encoded(rows, eyes(), strict=True)


def test_what_is_encoded_follows_the_files(rows, eyes, monkeypatch):
    first = encoded(rows, eyes())
    with monkeypatch.context() as patched:
        patched.setattr(ChatTemplate, "encode_rows", lambda *_: pytest.fail("encoded again"))
        assert encoded(rows, eyes()).file == first.file
    moved = rows.parent.with_name("moved")
    shutil.copytree(rows.parent, moved)
    assert encoded(moved / rows.name, eyes())[0]["images"] == [str(moved / "pictures/red.png")]
    Image.new("RGB", (300, 300)).save(rows.parent / "pictures" / "red.png")
    second = encoded(rows, eyes())
    assert len(second[0]["input_ids"]) > len(first[0]["input_ids"])
    image = rows.parent / "pictures" / "none.png"
    shutil.copy(rows.parent / "pictures" / "blue.png", image)
    assert len(encoded(rows, eyes())) == 4
    os.utime(image, (1, 1))
    assert encoded(rows, eyes()).file != second.file


def test_the_split_does_not_depend_on_the_place(rows, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(rows.parent, moved)
    one, two = (get_dataset([str(file)], dataset_test_ratio=0.5)[0] for file in (rows, moved / rows.name))
    assert one._fingerprint == two._fingerprint
    assert [r["messages"] for r in one] == [r["messages"] for r in two]


def test_coco_rows_take_the_same_road(eyes, tmp_path, pictures):
    """Its repository, made small: a table with a column of paths."""
    function = "llmtune.data.preprocess.single_turn:coco_caption"
    assert DATASET_MAPPING["coco-en"].preprocess == function
    from llmtune.data.info import DatasetInfo, register_dataset

    shutil.copytree(pictures, tmp_path / "images")
    table = [{"image": f"images/{name}", "caption": "A plain. && Another."} for name in ("red.png", "blue.png")]
    (tmp_path / "rows.json").write_text(json.dumps(table))
    register_dataset("tiny-coco", DatasetInfo(path=str(tmp_path / "rows.json"), preprocess=function), replace=True)
    dataset, _ = get_dataset(["tiny-coco"], dataset_test_ratio=0)
    template = template_of("qwen2-vl", eyes())
    store = encode_dataset(dataset, template, strict=True)
    assert [sample["images"] for sample in store] == [[str(tmp_path / row["image"])] for row in table]
    text = template.render(from_record(dataset[0]))
    assert f"user\n{template.info.image}please describe the image<|im_end|>" in text
    assert "A plain." in text
