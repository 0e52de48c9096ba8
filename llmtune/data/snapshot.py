"""Find the splits of a downloaded dataset repository, and the files of each.

Three layouts, tried in this order:

- ModelScope's: a JSON file beside the data that names, per subset and split, a table (`meta`) and the archive of
  the files that it refers to (`file`), `{"default": {"train": {"meta": "train.csv", "file": "images.zip"}}}`;
- Hugging Face's: the `configs` at the head of README.md, with patterns per split;
- neither: names of folders and files give the split, `data/train-00000-of-00002.parquet`, `dev.jsonl`.

A script in the repository is never run. `archives` unpacks the files that tables refer to.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llmtune.data.files import (
    EXTENSIONS,
    FILE_COLUMN,
    NOT_DATA,
    BadLine,
    Located,
    Part,
    extension_of,
    has_data_extension,
    has_rows,
    has_word,
    split_of,
    unpack,
    with_paths,
)
from llmtune.data.readers import read_rows
from llmtune.errors import DataError
from llmtune.types import DocumentUnit
from llmtune.utils.logging import get_logger

LARGEST_META = 1 << 20
PREFERRED = (".parquet", ".arrow", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")


@dataclass(frozen=True, slots=True)
class SplitFiles:
    """Files of a split. `media`: an archive, or a folder, with the files that the tables name."""

    files: tuple[Path, ...]
    media: Path | None = None


def find_splits(folder: Path, subset: str | None = None, *, files: Sequence[str] = ()) -> dict[str, SplitFiles]:
    """Return the splits of one subset of a repository.

    Args:
        subset: None for the only one, or the one called default.
        files: The files to use; the repository's own metadata is then ignored.

    Raises:
        DataError: No such subset, several and none named, or no readable file.
    """
    if files:
        if missing := [name for name in files if not (folder / name).is_file()]:
            raise DataError(f"{folder} holds no file {missing[0]}. Was it renamed on the hub?")
        return _by_name(folder, [folder / name for name in files])
    meta = _modelscope_meta(folder)
    if meta is not None:
        return _from_meta(folder, meta[_choose(list(meta), subset, folder)])
    configs = _readme_configs(folder)
    if configs:
        default = next((name for name, config in configs.items() if config.get("default")), None)
        config = configs[_choose(list(configs), subset or default, folder)]
        if "data_files" in config:
            return _from_patterns(_below(folder, config), config["data_files"])
        if "data_dir" in config:
            return _by_name(_below(folder, config), _data_files(_below(folder, config)))
    return _by_name(folder, _files_of_subset(folder, subset))


def _choose(names: list[str], subset: str | None, folder: Path) -> str:
    if subset is None and len(names) == 1:
        return names[0]
    wanted = "default" if subset is None else subset
    if wanted not in names:
        problem = "has several subsets" if subset is None else f"has no subset {subset!r}"
        raise DataError(f"The dataset in {folder} {problem}. There are: {', '.join(names)}. Give one as id:subset.")
    return wanted


# ModelScope


def _modelscope_meta(folder: Path) -> dict[str, dict[str, dict[str, Any]]] | None:
    for file in sorted(folder.glob("*.json")):
        if file.name in NOT_DATA or file.stat().st_size > LARGEST_META:
            continue
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError, OSError):
            continue  # data, or broken; the description may be another file
        if _is_meta(value):
            return {str(subset): splits for subset, splits in value.items()}
    return None


def _is_meta(value: Any) -> bool:
    """Return whether it is {subset: {split: {"meta": name, "file": name}}}; either name may be missing or empty."""
    if not isinstance(value, dict) or not value:
        return False
    if not all(isinstance(splits, dict) and splits for splits in value.values()):
        return False
    parts = [part for splits in value.values() for part in splits.values()]
    return all(isinstance(part, dict) and {"meta", "file"} & set(part) for part in parts)


def _from_meta(folder: Path, splits: Mapping[str, Mapping[str, Any]]) -> dict[str, SplitFiles]:
    found: dict[str, SplitFiles] = {}
    for name, part in splits.items():
        table, media = part.get("meta"), part.get("file")
        if not table and not media:
            continue
        if not table:
            raise DataError(f"The split {name!r} in {folder} is the archive {media} without a table; it has no rows.")
        found[name] = SplitFiles((_inside(folder, str(table)),), _inside(folder, str(media)) if media else None)
    return found


def _inside(folder: Path, name: str) -> Path:
    path = folder / _relative(folder, name)
    if not path.exists():
        raise DataError(f"{folder}: the dataset's description names {name}, which was not downloaded.")
    return path


def _relative(folder: Path, name: str) -> str:
    """Check that a name or pattern stays inside the repository. Links may: Hugging Face's cache is made of them."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{folder}: the dataset's description names {name}, which lies outside of the repository.")
    return name


# Hugging Face


def _readme_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the `configs` of the YAML block at the head of README.md, by name."""
    readme = folder / "README.md"
    if not readme.is_file():
        return {}
    text = readme.read_text(encoding="utf-8", errors="replace").removeprefix("\ufeff")
    block = re.match(r"---[ \t]*\n(.*?)^---[ \t]*$", text, flags=re.MULTILINE | re.DOTALL)
    if block is None:
        return {}
    import yaml

    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(block[1], Loader=yaml.SafeLoader)):
            raise yaml.YAMLError("aliases")  # a few of them make gigabytes
        head = yaml.safe_load(block[1])
    except (yaml.YAMLError, RecursionError, ValueError):
        get_logger().warning(f"{readme}: its header is not YAML; splits are taken from file names")
        return {}
    configs = head.get("configs") if isinstance(head, dict) else None
    listed = [config for config in configs or [] if isinstance(config, dict)]
    return {str(config.get("config_name", "default")): config for config in listed}


def _below(folder: Path, config: Mapping[str, Any]) -> Path:
    return folder / _relative(folder, str(config.get("data_dir") or ""))


def _from_patterns(folder: Path, given: Any) -> dict[str, SplitFiles]:
    """Parse `data_files`: a pattern, a list of patterns, or a list of {split, path} with one or more patterns each."""
    entries = given if isinstance(given, list) else [given]
    patterns: dict[str, list[str]] = {}
    for entry in entries:
        split, path = (entry.get("split", "train"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        patterns.setdefault(str(split), []).extend(map(str, path) if isinstance(path, list) else [str(path)])
    found: dict[str, SplitFiles] = {}
    for split, wanted in patterns.items():
        matches = {file for pattern in wanted for file in folder.glob(_relative(folder, pattern))}
        files = sorted(file for file in matches if file.is_file() and has_data_extension(file))
        if files:
            found[split] = SplitFiles(tuple(files))
    if not found:
        raise DataError(f"{folder / 'README.md'} names data files that are not there: {patterns}")
    return found


# Names alone


def _data_files(folder: Path) -> list[Path]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and has_rows(file)]
    return [file for file in files if not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)]


def _files_of_subset(folder: Path, subset: str | None) -> list[Path]:
    files = _data_files(folder)
    if subset is None or subset == "default":
        return files
    chosen = [file for file in files if subset in file.relative_to(folder).parts[:-1]]
    chosen = chosen or [file for file in files if has_word(file.name, subset)]
    if not chosen:
        raise DataError(f"{folder} has no subset {subset!r}: no folder or file has that name.")
    return chosen


def _by_name(folder: Path, files: Sequence[Path]) -> dict[str, SplitFiles]:
    if not files:
        raise DataError(f"{folder} holds no data file. Supported: {', '.join(EXTENSIONS)}, also with .gz.")
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(split_of(file.relative_to(folder)), []).append(file)
    if rest := found.pop("", []):  # beside files to train on, the others are something else: a licence, a vocabulary
        found = found if "train" in found or _only_texts(rest, found) else {"train": rest, **found}
    return {split: SplitFiles(tuple(_one_format(folder, split, parts))) for split, parts in found.items()}


def _only_texts(files: Sequence[Path], others: Mapping[str, Sequence[Path]]) -> bool:
    """Return whether files are texts beside data of another format."""
    formats = {extension_of(file) for part in others.values() for file in part}
    return bool(formats) and ".txt" not in formats and all(extension_of(file) == ".txt" for file in files)


def _one_format(folder: Path, split: str, files: Sequence[Path]) -> list[Path]:
    """Return the files of the most common format: a second format in the same split repeats the same rows."""
    counted = Counter(extension_of(file) for file in files if extension_of(file) != ".txt") or Counter([".txt"])
    best = max(counted, key=lambda extension: (counted[extension], -PREFERRED.index(extension)))
    if others := [str(file.relative_to(folder)) for file in files if extension_of(file) != best]:
        get_logger().info(f"{folder}: the {best} files are {split}; not read: {', '.join(others[:3])}")
    return [file for file in files if extension_of(file) == best]


# Rows


def split_parts(split: SplitFiles, folder: Path, document: DocumentUnit = "line") -> list[Part]:
    """Return readers of the rows of a split, one per file.

    Rows are located as `train.csv line 3`; a column `image:FILE` becomes `image`, a path.
    """
    media = unpack(split.media) if split.media is not None else None
    return [partial(_read_file, file, folder, media, document) for file in split.files]


def read_split(split: SplitFiles, folder: Path, document: DocumentUnit = "line") -> Iterator[Located]:
    """Yield the rows of a split."""
    return itertools.chain.from_iterable(part() for part in split_parts(split, folder, document))


def _read_file(file: Path, folder: Path, media: Path | None, document: DocumentUnit) -> Iterator[Located]:
    name = file.relative_to(folder) if file.is_relative_to(folder) else file.name
    for location, row in read_rows(file, document):
        if not isinstance(row, BadLine) and any(key.endswith(FILE_COLUMN) for key in row):
            row = with_paths(row, media)
        yield f"{name} {location}", row
