"""Folders as the hubs hand them out -> splits and files."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from llmtune.data.archives import unpack, unpacked_folder
from llmtune.data.snapshot import SplitFiles, find_splits, read_split
from llmtune.errors import DataError
from llmtune.utils.files import cache_root


def lay_out(folder: Path, *names: str, **texts: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(texts.get(name, '{"query": "q", "response": "r"}\n'))
    return folder


def found(folder: Path, subset: str | None = None) -> dict[str, list[str]]:
    splits = find_splits(folder, subset)
    return {name: [str(file.relative_to(folder)) for file in split.files] for name, split in splits.items()}


# ModelScope

META = {
    "default": {"train": {"meta": "train.csv", "file": "pictures.zip"}, "test": {"meta": "test.csv", "file": ""}},
    "small": {"train": {"meta": "few/train.csv", "file": None}, "validation": {"meta": "", "file": ""}},
}


def modelscope(folder: Path, meta=META) -> Path:
    lay_out(folder, "train.csv", "test.csv", "few/train.csv", "pictures.zip", "README.md")
    (folder / "set.json").write_text(json.dumps(meta))
    return folder


def test_modelscope_descriptions_name_the_splits(tmp_path):
    folder = modelscope(tmp_path)
    assert found(folder) == {"train": ["train.csv"], "test": ["test.csv"]}
    assert find_splits(folder)["train"].media == folder / "pictures.zip"
    assert find_splits(folder)["test"].media is None
    assert found(folder, "small") == {"train": ["few/train.csv"]}


def test_subsets_of_modelscope_are_listed(tmp_path):
    with pytest.raises(DataError, match=r"has no subset 'big'\. There are: default, small\. Give one as id:subset"):
        find_splits(modelscope(tmp_path), "big")
    other = modelscope(tmp_path, {"a": META["small"], "b": META["small"]})
    with pytest.raises(DataError, match=r"has several subsets\. There are: a, b"):
        find_splits(other)
    assert found(modelscope(tmp_path, {"a": META["small"]})) == {"train": ["few/train.csv"]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"3",
        b"[]",
        b"{}",
        b"\xff\xfe",
        bytes(100),
        b"[" * 100_000,
        b'{"default": []}',
        b'{"a": {"b": 3}}',
    ],
)
def test_a_broken_file_before_the_description(tmp_path, content):
    """Whatever sorts before it, or after it, the description is found."""
    folder = modelscope(tmp_path)
    for name in ("aaa.json", "zzz.json"):
        (folder / name).write_bytes(content)
    assert found(folder) == {"train": ["train.csv"], "test": ["test.csv"]}


def test_other_json_is_no_description(tmp_path):
    lay_out(tmp_path, "train.json")
    for name, text in {"a.json": "[]", "b.json": "{", "c.json": '{"a": {"b": 1}}', "d.json": "{}"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "dataset_infos.json").write_text(json.dumps(META))
    assert found(tmp_path) == {"train": ["train.json"]}


@pytest.mark.parametrize("name", ["../secret.csv", "/etc/passwd", "a/../../b.csv"])
def test_a_description_stays_inside(tmp_path, name):
    (tmp_path / "secret.csv").write_text("query,response\nq,r\n")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "set.json").write_text(json.dumps({"default": {"train": {"meta": name}}}))
    with pytest.raises(DataError, match="lies outside of the repository"):
        find_splits(folder)
    (folder / "set.json").unlink()
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {name}\n---\n")
    with pytest.raises(DataError, match="lies outside of the repository"):
        find_splits(folder)


def test_described_but_missing_files_are_errors(tmp_path):
    (tmp_path / "set.json").write_text(json.dumps({"default": {"train": {"meta": "train.csv", "file": ""}}}))
    with pytest.raises(DataError, match=r"names train\.csv, which was not downloaded"):
        find_splits(tmp_path)
    (tmp_path / "set.json").write_text(json.dumps({"default": {"train": {"meta": "", "file": "a.zip"}}}))
    with pytest.raises(DataError, match=r"is the archive a\.zip without a table"):
        find_splits(tmp_path)


def test_media_columns_hold_unpacked_paths(tmp_path):
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.writestr("train/1.jpg", b"jpg")
        archive.writestr("../../out.jpg", b"out")
    (tmp_path / "train.csv").write_text("image:FILE,caption\ntrain/1.jpg,A cat\n,none\n")
    split = SplitFiles((tmp_path / "train.csv",), tmp_path / "pictures.zip")
    rows = list(read_split(split, tmp_path))
    image = unpacked_folder(tmp_path / "pictures.zip") / "train" / "1.jpg"
    assert rows == [
        ("train.csv line 2", {"image": str(image), "caption": "A cat"}),
        ("train.csv line 3", {"image": None, "caption": "none"}),
    ]
    assert image.read_bytes() == b"jpg"
    assert cache_root() in image.parents
    assert list(cache_root().parent.rglob("out.jpg")) == [image.parents[1] / "out.jpg"]  # no way out of the folder
    image.write_bytes(b"kep")
    assert unpack(tmp_path / "pictures.zip") == image.parents[1]
    assert image.read_bytes() == b"kep"  # not unpacked again


@pytest.mark.parametrize("damage", [b"", b"j", bytes(3), None])
def test_a_damaged_image_is_unpacked_again(tmp_path, damage, capsys):
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.writestr("a/1.jpg", b"jpg")
        archive.writestr("a/2.jpg", b"two")
    folder = unpack(tmp_path / "pictures.zip")
    kept = (folder / "a" / "2.jpg").stat().st_ino
    if damage is None:
        (folder / "a" / "1.jpg").unlink()
    else:
        (folder / "a" / "1.jpg").write_bytes(damage)
    assert unpack(tmp_path / "pictures.zip") == folder
    assert (folder / "a" / "1.jpg").read_bytes() == b"jpg"
    assert (folder / "a" / "2.jpg").stat().st_ino == kept
    assert "pictures.zip: 1 of its unpacked files are damaged; unpacking them again" in capsys.readouterr().err
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_media_in_a_folder_and_broken(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "train.csv").write_text("image:FILE\n1.jpg\n")
    split = SplitFiles((tmp_path / "train.csv",), tmp_path / "pictures")
    assert list(read_split(split, tmp_path)) == [("train.csv line 2", {"image": str(tmp_path / "pictures" / "1.jpg")})]
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"a\.zip is not a zip file"):
        unpack(tmp_path / "a.zip")
    assert not list((cache_root() / "media").glob(".*"))


# Hugging Face

HEAD = """---
license: mit
configs:
- config_name: default
  data_files:
  - split: train_sft
    path: data/train_sft-*
  - split: test_sft
    path:
    - data/test_sft-*
    - more/*.jsonl
- config_name: plain
  data_files: one.jsonl
- config_name: listed
  data_files: [one.jsonl, two.jsonl]
- config_name: folder
  data_dir: sub
---
# A dataset

---
configs: none
"""


def hugging_face(folder: Path, head: str = HEAD) -> Path:
    shards = [f"data/{name}-{n:05}-of-00002.jsonl" for name in ("train_sft", "test_sft") for n in (0, 1)]
    lay_out(folder, *shards, "more/a.jsonl", "more/a.md", "one.jsonl", "two.jsonl", "sub/dev.jsonl", "sub/train.jsonl")
    (folder / "README.md").write_text(head)
    return folder


def test_configs_of_the_readme_name_the_splits(tmp_path):
    folder = hugging_face(tmp_path)
    shards = [f"data/test_sft-{n:05}-of-00002.jsonl" for n in (0, 1)]
    assert found(folder) == {
        "train_sft": [shard.replace("test", "train") for shard in shards],
        "test_sft": [*shards, "more/a.jsonl"],
    }
    assert found(folder, "plain") == {"train": ["one.jsonl"]}
    assert found(folder, "listed") == {"train": ["one.jsonl", "two.jsonl"]}
    assert found(folder, "folder") == {"validation": ["sub/dev.jsonl"], "train": ["sub/train.jsonl"]}
    with pytest.raises(DataError, match=r"no subset 'x'\. There are: default, plain, listed, folder"):
        find_splits(folder, "x")


def test_the_default_config_is_chosen(tmp_path):
    head = HEAD.replace("config_name: default", "config_name: big").replace(
        "config_name: plain", "config_name: plain\n  default: true"
    )
    assert found(hugging_face(tmp_path, head)) == {"train": ["one.jsonl"]}
    with pytest.raises(DataError, match="has several subsets"):
        find_splits(hugging_face(tmp_path, head.replace("  default: true\n", "")))


@pytest.mark.parametrize(
    "head", ["", "# no head", "---\n[broken\n---\n", "---\n- a\n---\n", "---\nlicense: mit\n---\n"]
)
def test_without_configs_names_give_the_splits(tmp_path, head):
    folder = lay_out(tmp_path, "train.jsonl", "test.jsonl")
    (folder / "README.md").write_text(head)
    assert found(folder) == {"train": ["train.jsonl"], "test": ["test.jsonl"]}


@pytest.mark.medium
def test_a_readme_that_explodes(tmp_path):
    """Nine lines of YAML would make a list of billions."""
    lines = ['a0: &a0 ["x","x","x","x","x","x","x","x","x"]']
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    lay_out(tmp_path, "train.jsonl")
    for head in ("\n".join([*lines, "configs: *a11"]), "configs: " + "[" * 3000):
        (tmp_path / "README.md").write_text(f"---\n{head}\n---\n")
        assert found(tmp_path) == {"train": ["train.jsonl"]}


def test_readme_names_nothing_that_is_there(tmp_path):
    lay_out(tmp_path, "a.jsonl")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: b.jsonl\n---\n")
    with pytest.raises(DataError, match="names data files that are not there"):
        find_splits(tmp_path)


def test_links_out_of_the_folder_are_followed(tmp_path):
    """The Hugging Face cache holds links to blobs outside of the folder."""
    (tmp_path / "blob").write_text('{"text": "t"}\n')
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "one.jsonl").symlink_to(tmp_path / "blob")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: one.jsonl\n---\n")
    assert found(folder) == {"train": ["one.jsonl"]}
    assert list(read_split(find_splits(folder)["train"], folder)) == [("one.jsonl line 1", {"text": "t"})]


# Names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["data.jsonl"], {"train": ["data.jsonl"]}),
        (["a.jsonl", "b.jsonl"], {"train": ["a.jsonl", "b.jsonl"]}),
        (["train.jsonl", "dev.jsonl", "licence.txt"], {"train": ["train.jsonl"], "validation": ["dev.jsonl"]}),
        (["my_train_1.csv", "my-test.csv"], {"train": ["my_train_1.csv"], "test": ["my-test.csv"]}),
        (["training/a.json", "valid/a.json"], {"train": ["training/a.json"], "validation": ["valid/a.json"]}),
        (["strained.jsonl", "latest.jsonl"], {"train": ["latest.jsonl", "strained.jsonl"]}),
        (["data/odd-00000-of-00001.parquet"], {"odd": ["data/odd-00000-of-00001.parquet"]}),
        (["train.jsonl", "train.csv"], {"train": ["train.jsonl"]}),
        (["train.json", "x/train_a.csv", "x/train_b.csv"], {"train": ["x/train_a.csv", "x/train_b.csv"]}),
        ([".hidden/train.jsonl", "_x/train.jsonl", "a.jsonl", "configuration.json"], {"train": ["a.jsonl"]}),
        (["a.json", "configuration.json", "dataset_infos.json"], {"train": ["a.json"]}),
        (["poems.txt"], {"train": ["poems.txt"]}),
        (["a.jsonl", "eval.jsonl"], {"train": ["a.jsonl"], "validation": ["eval.jsonl"]}),
        (["licence.txt", "test.jsonl"], {"test": ["test.jsonl"]}),
        (["poems.txt", "test.txt"], {"train": ["poems.txt"], "test": ["test.txt"]}),
        (["train/test_cases.json", "Dev/x.json"], {"train": ["train/test_cases.json"], "validation": ["Dev/x.json"]}),
        (["a.arrow", "cache-12.arrow", "state.json", "dataset_dict.json"], {"train": ["a.arrow"]}),
    ],
)
def test_names_of_files_and_folders_give_the_splits(tmp_path, names, expected):
    assert found(lay_out(tmp_path, *names)) == expected


def test_subsets_are_folders_or_prefixes(tmp_path):
    lay_out(tmp_path, "en/train.jsonl", "zh/train.jsonl", "fr_train.jsonl", "french.jsonl")
    assert found(tmp_path, "en") == {"train": ["en/train.jsonl"]}
    assert found(tmp_path, "fr") == {"train": ["fr_train.jsonl"]}
    with pytest.raises(DataError, match=r"has no subset 'de': no folder or file"):
        find_splits(tmp_path, "de")


def test_a_repository_without_data_is_an_error(tmp_path):
    (tmp_path / "model.bin").write_text("")
    with pytest.raises(DataError, match="holds no data file"):
        find_splits(tmp_path)


def test_chosen_files_replace_the_description(tmp_path):
    lay_out(tmp_path, "a.jsonl", "b.jsonl")
    (tmp_path / "set.json").write_text(json.dumps(META))
    assert find_splits(tmp_path, files=("b.jsonl",)) == {"train": SplitFiles((tmp_path / "b.jsonl",))}
    with pytest.raises(DataError, match=r"holds no file c\.jsonl"):
        find_splits(tmp_path, files=("b.jsonl", "c.jsonl"))


def test_scripts_are_not_run(tmp_path):
    (tmp_path / "set.py").write_text("raise SystemExit('run')")
    lay_out(tmp_path, "train.jsonl")
    assert found(tmp_path) == {"train": ["train.jsonl"]}
