"""Cache of canonical rows on disk, keyed by a hash of their inputs; damaged entries are rebuilt."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from llmtune.data.canonical import FORMATS_VERSION, schema_of
from llmtune.data.rows import new_digest, write_records
from llmtune.errors import OutputError, UsageError
from llmtune.utils.files import (
    cache_root,
    is_whole,
    publish_over,
    read_json,
    seal_of,
    sweep,
    temporary_folder,
    write_json,
)
from llmtune.utils.locks import hold_lock

if TYPE_CHECKING:
    import datasets


ROWS_FILE, REPORT_FILE, SEAL_FILE = "rows.arrow", "report.json", "seal.json"


def store(fill: Callable[[Path], str]) -> str:
    """Let `fill` write rows and report into a temporary folder and return their cache key; publish them under it.

    Safe against other processes that write the same key: each file replaces an equal one atomically, and readers
    keep the old one open.
    """
    root = cache_root() / "rows"
    try:
        root.mkdir(parents=True, exist_ok=True)
        sweep(root, is_ours=True)
        with temporary_folder(root / "writing") as temporary:
            key = fill(temporary)
            seal = {name: seal_of(temporary / name) for name in (ROWS_FILE, REPORT_FILE)}
            write_json(temporary / SEAL_FILE, seal)
            publish_over(temporary, row_folder(key))
    except OSError as err:
        raise _cannot_write(root, err) from err
    return key


@contextlib.contextmanager
def writing(key: str) -> Iterator[None]:
    """Let one job at a time read the rows of a key, on all machines that share the cache."""
    folder = row_folder(key)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(folder.with_name(f"{folder.name}.lock")))
        except OSError as err:
            raise _cannot_write(folder.parent, err) from err
        yield


def _cannot_write(root: Path, err: OSError) -> OutputError:
    return OutputError(f"Cannot write into {root} ({err.strerror or err}). Set LLMTUNE_CACHE to another folder.")


def cached_report(key: str) -> dict[str, Any] | None:
    """Return the report of cached rows; None where they are missing or damaged."""
    folder = row_folder(key)
    seal = read_json(folder / SEAL_FILE)
    if not all(is_whole(folder / name, seal.get(name)) for name in (REPORT_FILE, ROWS_FILE)):
        return None
    value: dict[str, Any] = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    return value


def is_damaged(key: str) -> bool:
    """Return whether an entry exists that `cached_report` rejects."""
    return os.path.lexists(row_folder(key)) and cached_report(key) is None


def open_cached(key: str) -> datasets.Dataset:
    """Open a cached table memory-mapped; the key is its fingerprint, the same in every process."""
    import datasets

    dataset = datasets.Dataset.from_file(str(row_folder(key) / ROWS_FILE))
    # upstream: datasets 5.2.0 datasets/arrow_dataset.py: from_file has no argument for the fingerprint
    dataset._fingerprint = key
    return dataset


def row_folder(key: str) -> Path:
    """Return the cache folder of a key.

    The version that read the rows is not part of the key, which seeds the sampling of rows: a run resumed by a newer
    llmtune samples the same ones.
    """
    return cache_root() / "rows" / f"{key}-{FORMATS_VERSION}"


# Fill the model's name and author into self-identity datasets


PLACEHOLDER = re.compile(r"\{\{(NAME|AUTHOR)\}\}")
TEXTS = ("content", "reasoning")
CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


def fill_identity(
    dataset: datasets.Dataset, model_name: Sequence[str] = (), model_author: Sequence[str] = ()
) -> tuple[datasets.Dataset, int]:
    """Replace `{{NAME}}` and `{{AUTHOR}}` in the contents and the thoughts of the messages.

    Args:
        dataset: In the canonical schema. Not mutated.
        model_name: One or two forms: the first for conversations with Chinese characters, the last for the others.
            Empty leaves the placeholder.
        model_author: Likewise.

    Returns:
        The dataset, the same object where nothing changes, and how many rows changed.
    """
    values = identity_values(model_name, model_author)
    if not values or not _any_placeholder(dataset):
        return dataset, 0
    changed = 0

    def records() -> Iterator[dict[str, Any]]:
        nonlocal changed
        for record in dataset:
            filled = fill_record(record, values)
            changed += filled != record
            yield filled

    def fill(folder: Path) -> str:
        write_records(records(), folder / ROWS_FILE, schema_of(dataset.column_names))
        write_json(folder / REPORT_FILE, {"filled": changed})
        # upstream: datasets 5.2.0 datasets/arrow_dataset.py: a fingerprint has no public name
        return str(new_digest("identity", dataset._fingerprint, sorted(values.items())).hexdigest())

    key = store(fill)
    return (open_cached(key), changed) if changed else (dataset, 0)


def count_placeholders(dataset: datasets.Dataset) -> int:
    """Count the rows that hold `{{NAME}}` or `{{AUTHOR}}` in a message."""
    if not _any_placeholder(dataset):
        return 0
    return sum(any(PLACEHOLDER.search(text) for text in _texts(row)) for row in dataset)


def _texts(record: dict[str, Any]) -> Iterator[str]:
    for message in _messages(record):
        yield from (message[key] for key in TEXTS if message[key] is not None)


def _messages(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from record["messages"]
    for answer in record.get("answers") or ():
        yield from answer["messages"]


def _forms(value: Sequence[str], flag: str) -> tuple[str, ...]:
    forms = (value,) if isinstance(value, str) else tuple(value)
    if len(forms) > 2:
        raise UsageError(f"--{flag} takes one or two forms, the Chinese one first, not {len(forms)}.")
    return forms


def _any_placeholder(dataset: datasets.Dataset) -> bool:
    """Return whether the whole table, whatever rows are selected from it, may hold one: fast, no false negatives."""
    for batch in dataset.data.table.to_batches():
        lists = [batch.column("messages")]
        if "answers" in batch.schema.names:
            lists.append(pc.struct_field(pc.list_flatten(batch.column("answers")), "messages"))
        for messages in map(pc.list_flatten, lists):
            for key in TEXTS:
                texts = pc.struct_field(messages, key)
                if pc.any(pc.match_substring_regex(texts, r"\{\{(NAME|AUTHOR)\}\}")).as_py():
                    return True
    return False


def identity_values(model_name: Sequence[str] = (), model_author: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """Return the forms of each placeholder that is to be filled."""
    values = {"NAME": _forms(model_name, "model_name"), "AUTHOR": _forms(model_author, "model_author")}
    return {name: forms for name, forms in values.items() if forms}


def fill_record(record: dict[str, Any], values: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return a canonical record with its placeholders filled."""
    chinese = any(CJK.search(text) for text in _texts(record))

    def value(match: re.Match[str]) -> str:
        forms = values.get(match[1])
        return match[0] if forms is None else forms[0] if chinese else forms[-1]

    def filled(message: dict[str, Any]) -> dict[str, Any]:
        return message | {key: PLACEHOLDER.sub(value, message[key]) for key in TEXTS if message[key] is not None}

    whole = {**record, "messages": [filled(message) for message in record["messages"]]}
    if record.get("answers"):
        answers = [{**one, "messages": [filled(message) for message in one["messages"]]} for one in record["answers"]]
        whole["answers"] = answers
    return whole
