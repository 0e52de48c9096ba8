"""Mix several sources into one training and one validation part, the same on every rank and in every run.

Each source draws from a generator of its own, seeded by `dataset_seed` and the source's content: the same source
gives the same split in any mix. Rows keep their order; the trainer shuffles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import datasets
import numpy as np

from llmtune.data.image_marks import with_image_folder
from llmtune.data.info import DATASET_MAPPING
from llmtune.data.items import parse_item, split_items
from llmtune.data.loading import load_source
from llmtune.data.row_cache import count_placeholders, fill_identity
from llmtune.data.rows import new_digest
from llmtune.errors import UsageError
from llmtune.hub.clients import HubOptions
from llmtune.types import DocumentUnit, RowKind
from llmtune.utils.logging import get_logger

Dataset: TypeAlias = datasets.Dataset
Forms: TypeAlias = "str | Sequence[str] | None"
Indices: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.int64]]"


@dataclass(slots=True)
class _Options:
    seed: int
    ratio: float
    strict: bool
    overwrite_cache: bool
    need_answer: bool
    kind: RowKind
    document: DocumentUnit
    processes: int
    hub: HubOptions
    model_name: Sequence[str]
    model_author: Sequence[str]


def get_dataset(
    names: str | Sequence[str],
    *,
    dataset_test_ratio: float = 0.01,
    dataset_seed: int = 42,
    train_dataset_sample: int = -1,
    val_dataset_sample: int | None = None,
    val_dataset: str | Sequence[str] = (),
    strict: bool = False,
    model_name: Forms = None,
    model_author: Forms = None,
    overwrite_cache: bool = False,
    need_answer: bool = True,
    kind: RowKind = "conversations",
    document: DocumentUnit = "line",
    dataset_num_proc: int = 1,
    use_hf: bool | None = None,
    hub_token: str | None = None,
    cache_dir: str | None = None,
) -> tuple[Dataset, Dataset | None]:
    """Load sources, split each into training and validation, and concatenate them.

    Args:
        names: Registered keys, paths, `ms::org/name` or `hf::org/name:subset`, each optionally with `#n` to draw n
            of all its rows; also "a,b".
        dataset_test_ratio: Share of each source that becomes validation, at least one row of a source with two;
            0 splits nothing off. A source that ships a validation part uses that.
        dataset_seed: Seed of every draw; the global generators are not touched.
        train_dataset_sample: Rows drawn from the whole training part; -1 keeps all.
        val_dataset_sample: Rows drawn from the whole validation part; -1 keeps all. None follows
            `train_dataset_sample`: a part that was split off is cut to that times the ratio, a shipped part is kept.
        val_dataset: Used whole as validation; then nothing is split off.
        strict: The first bad row is fatal.
        model_name: Replaces `{{NAME}}`: one form, or the Chinese and the other.
        model_author: Replaces `{{AUTHOR}}`, likewise.
        overwrite_cache: Read the rows again, even if they are cached.
        need_answer: Rows without a response are bad; False for rows that a model is to answer.
        kind: What rows are read as: conversations, comparisons of responses, or labelled responses.
        document: Row of a `.txt` file: each of its lines, or the whole file.
        dataset_num_proc: Processes that read rows that are not cached.
        use_hf: Take registered datasets from Hugging Face; None lets the environment decide.
        hub_token: Token of the hub; None for that of the environment or the client.
        cache_dir: Folder of downloads; None for the client's own.

    Returns:
        The two parts in the canonical schema; the second is None without validation rows.

    Raises:
        UsageError: No name, or a number out of range. DataError: As `load_source` raises.
    """
    _check(dataset_test_ratio, train_dataset_sample, val_dataset_sample, dataset_seed)
    ratio = 0.0 if val_dataset else dataset_test_ratio
    hub = HubOptions(use_hf=use_hf, token=hub_token, cache_dir=cache_dir)
    options = _Options(
        dataset_seed,
        ratio,
        strict,
        overwrite_cache,
        need_answer,
        kind,
        document,
        dataset_num_proc,
        hub,
        _forms(model_name),
        _forms(model_author),
    )
    train, split_off, shipped = _load_all(split_items(names), options)
    if val_dataset:
        if shipped:
            rows = sum(len(part) for part in shipped)
            get_logger().warning(
                f"--val_dataset is given, so {rows:,} validation rows shipped with the sources are not used"
            )
        whole, _, more = _load_all(split_items(val_dataset), options)
        split_off, shipped = [], [*whole, *more]
    train_part = _draw(_joined(train), train_dataset_sample, dataset_seed)
    if val_dataset_sample is None and train_dataset_sample >= 0 and split_off:
        held = _joined(split_off)
        cap = min(len(held), max(1, int(train_dataset_sample * ratio)))
        split_off = [_draw(held, cap, dataset_seed)]
    parts = [*split_off, *shipped]
    if not parts or val_dataset_sample == 0:
        return train_part, None
    wanted = -1 if val_dataset_sample is None else val_dataset_sample
    return train_part, _draw(_joined(parts), wanted, dataset_seed)


def _check(ratio: float, train_sample: int, val_sample: int | None, seed: int) -> None:
    if not 0 <= ratio < 1:
        raise UsageError(f"dataset_test_ratio is {ratio}; it must be at least 0 and less than 1.")
    if train_sample < -1 or (val_sample is not None and val_sample < -1):
        raise UsageError("train_dataset_sample and val_dataset_sample are numbers of rows, or -1 for all.")
    if seed < 0:
        raise UsageError(f"dataset_seed is {seed}; it must be 0 or more.")


def _forms(value: Forms) -> Sequence[str]:
    return () if value is None else (value,) if isinstance(value, str) else value


# Sources


def _load_all(names: Sequence[str], options: _Options) -> tuple[list[Dataset], list[Dataset], list[Dataset]]:
    """The training parts, the validation parts that were split off, and the shipped validation parts."""
    train: list[Dataset] = []
    split_off: list[Dataset] = []
    shipped: list[Dataset] = []
    for name in names:
        item = parse_item(name)
        loaded = load_source(
            item.source,
            strict=options.strict,
            overwrite_cache=options.overwrite_cache,
            need_answer=options.need_answer,
            kind=options.kind,
            document=options.document,
            processes=options.processes,
            hub=options.hub,
        )
        rows = with_image_folder(_filled(loaded.train, item.source, options), loaded.image_folder)
        rows = _own_sample(rows, item.source, options)
        if item.sample is not None:
            if item.sample > len(rows):
                text = f"{name}: it has only {len(rows):,} rows; all of them are used"
                get_logger().warning(text)
            rows = _draw(rows, item.sample, options.seed)
        if loaded.validation is not None:
            more = _filled(loaded.validation, item.source, options)
            shipped.append(with_image_folder(more, loaded.image_folder))
        elif held := _held_out(len(rows), options.ratio):
            order = _generator(options.seed, "split", rows).permutation(len(rows))
            split_off.append(_select(rows, np.sort(order[:held])))
            rows = _select(rows, np.sort(order[held:]))
        train.append(rows)
    return train, split_off, shipped


def _own_sample(rows: Dataset, source: str, options: _Options) -> Dataset:
    """Return the sample of the rows that defines the dataset."""
    info = DATASET_MAPPING.get(source)
    if info is None or info.sample is None or info.sample >= len(rows):
        return rows
    get_logger().info(f"{source}: sampled {info.sample:,} of {len(rows):,} rows, as the dataset is defined")
    return _draw(rows, info.sample, options.seed)


def _held_out(rows: int, ratio: float) -> int:
    return 0 if ratio == 0 or rows < 2 else min(max(1, int(rows * ratio)), rows - 1)


def _filled(dataset: Dataset, source: str, options: _Options) -> Dataset:
    info = DATASET_MAPPING.get(source)
    name = options.model_name or (info.default_name if info else ())
    author = options.model_author or (info.default_author if info else ())
    dataset, changed = fill_identity(dataset, name, author)
    if changed:
        get_logger().info(f"{source}: filled the model's name and author into {changed:,} rows")
    if left := count_placeholders(dataset):
        get_logger().warning(
            f"{source}: {left:,} rows hold {{{{NAME}}}} or {{{{AUTHOR}}}}; give --model_name and --model_author"
        )
    return dataset


# Drawing


def _draw(dataset: Dataset, wanted: int, seed: int) -> Dataset:
    """Return the indices of `wanted` rows, in order; of all rows where that is -1 or more than there are."""
    if wanted < 0 or wanted >= len(dataset):
        return dataset
    order = _generator(seed, "sample", dataset).permutation(len(dataset))
    return _select(dataset, np.sort(order[:wanted]))


def _generator(seed: int, purpose: str, dataset: Dataset) -> np.random.Generator:
    # upstream: datasets 5.2.0 datasets/arrow_dataset.py: a fingerprint has no public name
    number = int.from_bytes(new_digest(purpose, dataset._fingerprint).digest(), "little")
    return np.random.default_rng([seed, number])


def _select(dataset: Dataset, indices: Indices) -> Dataset:
    # upstream: datasets 5.2.0 datasets/arrow_dataset.py: a fingerprint has no public name
    digest = new_digest("select", dataset._fingerprint)
    digest.update(indices.astype("<i8").tobytes())
    return dataset.select(indices, new_fingerprint=str(digest.hexdigest()))


def _joined(parts: Sequence[Dataset]) -> Dataset:
    if len(parts) == 1:
        return parts[0]
    joined: Dataset = datasets.concatenate_datasets(list(parts))
    # upstream: datasets 5.2.0 datasets/combine.py: its fingerprint hashes metadata too: the token cache would miss
    joined._fingerprint = str(new_digest("concatenate", [part._fingerprint for part in parts]).hexdigest())
    return joined
