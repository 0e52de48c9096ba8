"""Load a `--dataset` item into canonical, memory-mapped Arrow tables on disk, with a report on its rows."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from llmtune.data.canonical import schema_for
from llmtune.data.content_key import content_key
from llmtune.data.files import Located, Part, extension_of, unpacked_folder
from llmtune.data.info import DATASET_MAPPING, DatasetInfo
from llmtune.data.items import check_source, expand, is_hub_source, local_parts, parse_hub_source
from llmtune.data.preprocess.common import Preprocess, cause_of, code_version, name_of
from llmtune.data.readers import parts_of
from llmtune.data.reading import read_parts
from llmtune.data.remote import fetch_parts, info_of_item
from llmtune.data.row_cache import REPORT_FILE, ROWS_FILE, cached_report, is_damaged, open_cached, store, writing
from llmtune.data.rows import LoadReport, canonical_records, digested, new_digest
from llmtune.data.snapshot import SplitFiles, split_parts
from llmtune.data.values import without_nulls
from llmtune.errors import DataError, LlmtuneError
from llmtune.hub.clients import HubOptions
from llmtune.registry import resolve_reference
from llmtune.types import DocumentUnit, RowKind
from llmtune.utils.files import write_json
from llmtune.utils.logging import get_logger
from llmtune.utils.processes import can_fork

Dataset: TypeAlias = datasets.Dataset


@dataclass(frozen=True, slots=True)
class Loaded:
    """One source.

    Attributes:
        validation: The validation part that the source itself ships.
        image_folder: Base of relative image paths; None: the working directory.
    """

    train: Dataset
    validation: Dataset | None
    report: LoadReport
    validation_report: LoadReport | None = None
    image_folder: Path | None = None


@dataclass(frozen=True, slots=True)
class _Options:
    strict: bool
    overwrite_cache: bool
    need_answer: bool
    kind: RowKind
    document: DocumentUnit
    processes: int


@dataclass(frozen=True, slots=True)
class Rules:
    """Preprocessing of each row before its format is recognised.

    Attributes:
        version: Part of the cache key.
        may_keep_state: The function is not llmtune's: what it returns may depend on the rows before.
    """

    columns: Mapping[str, str]
    preprocess: Preprocess | None = None
    version: str = ""
    may_keep_state: bool = False


AS_THEY_ARE = Rules({})


def load_source(
    text: str,
    *,
    strict: bool = False,
    overwrite_cache: bool = False,
    need_answer: bool = True,
    kind: RowKind = "conversations",
    document: DocumentUnit = "line",
    processes: int = 1,
    hub: HubOptions = HubOptions(),  # noqa: B008 - it is frozen
) -> Loaded:
    """Load a registered key, a repository, a data file or a folder of files; a second run reads the cache.

    Args:
        text: A key, `ms::org/name`, `hf::org/name:subset` or a path, without `#`.
        strict: The first bad row is fatal.
        overwrite_cache: Read the rows again, even if they are cached.
        need_answer: Rows without a response are bad.
        kind: What rows are read as.
        document: Row of a `.txt` file.
        processes: That read rows that are not cached.
        hub: The hub of registered datasets, and how to access it.

    Raises:
        DataError: A missing or broken file, no usable row, or a bad row under `strict`.
        LlmtuneError: A download that fails.
        UnknownKeyError: Neither a key nor anything that looks like a path.
    """
    options = _Options(strict, overwrite_cache, need_answer, kind, document, processes)
    if text in DATASET_MAPPING:
        return _load_entry(text, DATASET_MAPPING[text], options, hub)
    check_source(text)
    if is_hub_source(text):
        item = parse_hub_source(text)
        hub = dataclasses.replace(hub, use_hf=item.hub == "hf")
        return _load_hub(text, info_of_item(item), AS_THEY_ARE, options, hub)
    return _load_path(expand(text), text, AS_THEY_ARE, options)


def _load_entry(key: str, info: DatasetInfo, options: _Options, hub: HubOptions) -> Loaded:
    rules = rules_of(key, info)
    if info.path is not None:
        loaded = _load_path(expand(info.path), key, rules, options)
        if info.val_path is None:
            return loaded
        shipped = _load_path(expand(info.val_path), f"{key} (validation)", rules, options)
        return Loaded(loaded.train, shipped.train, loaded.report, shipped.report, loaded.image_folder)
    if info.get_function is None:
        return _load_hub(key, info, rules, options, hub)
    train_rows, validation_rows = made_rows(key, info)
    train, report = _load_made(train_rows, key, rules, options)
    if validation_rows is None:
        return Loaded(train, None, report)
    validation, validation_report = _load_made(validation_rows, f"{key} (validation)", rules, options)
    return Loaded(train, validation, report, validation_report)


def rules_of(key: str, info: DatasetInfo) -> Rules:
    """Return the preprocessing that an entry defines."""
    if info.preprocess is None:
        return Rules(info.columns)
    function = resolve_reference(info.preprocess, what=f"The preprocess function of the dataset {key!r}")
    # What identifies it: its name for one of llmtune's own, else its code. So every version of llmtune samples the same
    # rows; a change of what they return changes FORMATS_VERSION.
    if isinstance(info.preprocess, str) and info.preprocess.startswith("llmtune.data.preprocess."):
        return Rules(info.columns, function, info.preprocess.partition(":")[2])
    return Rules(info.columns, function, code_version(function), may_keep_state=True)


# Files


def _load_path(path: Path, source: str, rules: Rules, options: _Options) -> Loaded:
    parts = local_parts(path)
    image_folder = path.parent if parts.folder is None else parts.folder
    train, report = _load_local(parts.train, parts.folder, source, rules, options)
    if not parts.validation:
        return Loaded(train, None, report, image_folder=image_folder)
    named = f"{source} (validation)"
    shipped, shipped_report = _load_local(parts.validation, parts.folder, named, rules, options)
    return Loaded(train, shipped, report, shipped_report, image_folder)


def _load_local(
    files: Sequence[Path], folder: Path | None, source: str, rules: Rules, options: _Options
) -> tuple[Dataset, LoadReport]:
    named = [
        (str(file.relative_to(folder)) if folder else extension_of(file) + file.suffix.lower(), file) for file in files
    ]

    def parts() -> list[Part]:
        return parts_of(files, folder, options.document, cut=_processes(rules, options) > 1)

    return _load_files(named, parts, source, rules, options)


def _load_hub(source: str, info: DatasetInfo, rules: Rules, options: _Options, hub: HubOptions) -> Loaded:
    parts = fetch_parts(source, info, hub, quiet=source not in DATASET_MAPPING)
    train, report = _load_splits(parts.train, parts.folder, source, rules, options)
    if not parts.validation:
        return Loaded(train, None, report, image_folder=parts.folder)
    shipped, shipped_report = _load_splits(parts.validation, parts.folder, f"{source} (validation)", rules, options)
    return Loaded(train, shipped, report, shipped_report, parts.folder)


def _load_splits(
    splits: Sequence[SplitFiles], folder: Path, source: str, rules: Rules, options: _Options
) -> tuple[Dataset, LoadReport]:
    named = [(str(file.relative_to(folder)), file) for split in splits for file in split.files]
    # Rows hold the paths of unpacked files, so their location is part of the content.
    media = [str(unpacked_folder(split.media)) if split.media else "" for split in splits]

    def parts() -> list[Part]:
        return [part for split in splits for part in split_parts(split, folder, options.document)]

    return _load_files(named, parts, source, rules, options, media)


def _load_files(
    named: list[tuple[str, Path]],
    parts: Callable[[], Sequence[Part]],
    source: str,
    rules: Rules,
    options: _Options,
    more: object = (),
) -> tuple[Dataset, LoadReport]:
    key = _files_key(named, rules, options, more)
    kept = None if options.overwrite_cache else cached_report(key)
    if kept is not None:
        return _finish(key, LoadReport.from_json(source, kept), options)
    with writing(key):
        kept = None if options.overwrite_cache else cached_report(key)  # another job may have read them meanwhile
        if kept is not None:
            return _finish(key, LoadReport.from_json(source, kept), options)
        if not options.overwrite_cache and is_damaged(key):
            get_logger().warning(f"{source}: its cached rows are damaged; reading them again")
        return _finish(*_write(parts, source, rules, options, key=key), options)


IDENTITY = 3
"""First part of every key of files. It stays: keys seed the sampling of rows, which no new version may change."""


def _files_key(named: list[tuple[str, Path]], rules: Rules, options: _Options, more: object) -> str:
    digest = new_digest(IDENTITY, sorted(rules.columns.items()), options.need_answer)
    if options.kind != "conversations":
        digest.update(options.kind.encode())
    if options.document != "line":
        digest.update(f"a row is a {options.document}".encode())
    if rules.preprocess is not None or more:
        digest.update(repr((rules.version, more)).encode("utf-8", "surrogatepass"))
    return content_key(digest, named)


# Functions


def _load_made(made: Any, source: str, rules: Rules, options: _Options) -> tuple[Dataset, LoadReport]:
    """Load the rows that a registered function returned. They are read again in each run; the key is their content."""
    key, report = _write(lambda: [partial(located_rows, made, source)], source, rules, options, key=None)
    return _finish(key, report, options)


def made_rows(key: str, info: DatasetInfo) -> tuple[Any, Any]:
    """Call the function of an entry: the training rows, and the validation rows or None.

    Raises:
        DataError: The function raises; names it.
    """
    assert info.get_function is not None
    function = resolve_reference(info.get_function, what=f"The dataset {key!r}")
    try:
        made = function()
    except (LlmtuneError, MemoryError):
        raise
    except (Exception, SystemExit) as err:  # third-party code may raise anything
        raise DataError(f"The dataset {key!r}: its function {name_of(function)} fails: {cause_of(err)}.") from err
    return made if isinstance(made, tuple) and len(made) == 2 else (made, None)


def located_rows(made: Any, source: str) -> Iterator[Located]:
    """Yield the rows that a registered function returned."""
    if not isinstance(made, (datasets.Dataset, list)):
        raise DataError(
            f"The function of the dataset {source!r} returned {type(made).__name__}; it must return a "
            "datasets.Dataset, a list of rows, or a pair (train, validation) of either."
        )
    rows = iter(made)
    for number in itertools.count(1):
        try:
            row = next(rows, None)
        except Exception as err:  # a row of a datasets.Dataset is decoded, or mapped, when it is asked for
            raise DataError(f"The dataset {source!r}: row {number} cannot be read: {cause_of(err)}.") from err
        if row is None and number > len(made):
            return
        if not isinstance(row, Mapping):
            raise DataError(f"The dataset {source!r}: row {number} is {type(row).__name__}, not a dict.")
        yield f"row {number}", without_nulls(dict(row)) if isinstance(made, datasets.Dataset) else dict(row)


# Cache


def _write(
    parts: Callable[[], Sequence[Part]], source: str, rules: Rules, options: _Options, key: str | None
) -> tuple[str, LoadReport]:
    """Read rows into the cache, under a hash of their content if no key is given."""
    kept: list[LoadReport] = []
    digest = new_digest("records")

    def convert(rows: Iterable[Located], report: LoadReport) -> Iterator[dict[str, Any]]:
        records = canonical_records(
            rows,
            report,
            columns=rules.columns,
            preprocess=rules.preprocess,
            need_answer=options.need_answer,
            strict=options.strict,
            kind=options.kind,
        )
        return records if key else digested(records, digest)

    def fill(folder: Path) -> str:
        schema = schema_for(options.kind)
        processes = _processes(rules, options)
        report = read_parts(parts(), convert, folder / ROWS_FILE, schema, source=source, processes=processes)
        report.check(strict=options.strict)
        write_json(folder / REPORT_FILE, report.to_json())
        kept.append(report)
        return key or str(digest.hexdigest())

    return store(fill), kept[0]


def _processes(rules: Rules, options: _Options) -> int:
    """How many processes read: one where a function has to see all rows, or others cannot be started."""
    return 1 if rules.may_keep_state or not can_fork() else options.processes


_collected: contextvars.ContextVar[list[LoadReport] | None] = contextvars.ContextVar("reports", default=None)


@contextlib.contextmanager
def load_reports() -> Iterator[list[LoadReport]]:
    """Collect the reports of the sources that are loaded within the block."""
    found: list[LoadReport] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def _finish(key: str, report: LoadReport, options: _Options) -> tuple[Dataset, LoadReport]:
    if (collected := _collected.get()) is not None:
        collected.append(report)
    report.check(strict=options.strict)
    get_logger().info(report.summary())
    if warning := report.warning():
        get_logger().warning(warning)
    return open_cached(key), report
