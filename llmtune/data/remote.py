"""Download hub datasets: from a catalogue entry or `ms::org/name` to the local files of its two parts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from llmtune.data.info import DatasetInfo
from llmtune.data.items import HubItem
from llmtune.data.snapshot import SplitFiles, find_splits
from llmtune.errors import DataError
from llmtune.hub.clients import HubOptions, use_hf
from llmtune.utils.logging import get_logger

SYNONYMS = ("validation", "val", "valid", "dev", "eval", "evaluation")
"""Synonyms of split names: a dataset may use different ones on the two hubs."""


@dataclasses.dataclass(frozen=True, slots=True)
class Splits:
    """The splits of a repository. `validation` is empty where it ships none."""

    folder: Path
    train: tuple[SplitFiles, ...]
    validation: tuple[SplitFiles, ...]


def info_of_item(item: HubItem) -> DatasetInfo:
    """Return the entry of a repository outside the catalogue: its row format is recognised, as for a file."""
    subsets = (item.subset,) if item.subset else ()
    optional = ("validation",)
    if item.hub == "hf":
        return DatasetInfo(hf_dataset_id=item.dataset_id, subsets=subsets, val_splits=optional)
    return DatasetInfo(dataset_id=item.dataset_id, subsets=subsets, val_splits=optional)


def from_hugging_face(key: str, info: DatasetInfo, explicit: bool | None) -> bool:
    """Return the hub of the flag or the environment, unless the dataset is known on the other one only."""
    wanted = use_hf(explicit)
    if (info.hf_dataset_id if wanted else info.dataset_id) is not None:
        return wanted
    if explicit is not None or wanted:
        name = "ModelScope" if wanted else "Hugging Face"
        get_logger().warning(f"{key}: known on {name} only; using that hub")
    return not wanted


def fetch_parts(key: str, info: DatasetInfo, hub: HubOptions, *, quiet: bool = False) -> Splits:
    """Download missing files, and find the splits that the entry names.

    Args:
        key: For messages.
        quiet: Do not log a missing validation split.

    Raises:
        LlmtuneError: The download fails. DataError: The repository lacks files or splits of the entry.
    """
    from llmtune.hub.fetch import fetch_dataset

    hugging_face = from_hugging_face(key, info, hub.use_hf)
    dataset_id = info.hf_dataset_id if hugging_face else info.dataset_id
    assert dataset_id is not None
    folder = fetch_dataset(
        dataset_id,
        use_hf=hugging_face,
        token=hub.token,
        cache_dir=hub.cache_dir,
        allow_patterns=[re.escape(name) for name in info.files] or None,
    )
    train: list[SplitFiles] = []
    validation: list[SplitFiles] = []
    for subset in info.subsets or (None,):
        splits = find_splits(folder, subset, files=info.files)
        chosen = _pick(splits, info.train_splits, key, needed=True)
        shipped = _pick(splits, info.val_splits, key, needed=False, quiet=quiet) if info.val_splits else []
        train += chosen
        validation += [split for split in shipped if split not in chosen]
    return Splits(folder, tuple(train), tuple(validation))


def _pick(
    splits: dict[str, SplitFiles], wanted: Sequence[str], key: str, *, needed: bool, quiet: bool = False
) -> list[SplitFiles]:
    """Return the splits by their names; where one is needed and only one exists, that one."""
    found = {name: split for name in wanted if (split := _named(splits, name)) is not None}
    there = ", ".join(splits) or "none"
    if not found and needed:
        if len(splits) == 1:
            return list(splits.values())
        if not wanted and "train" in splits:
            return [splits["train"]]
        expected = " and ".join(wanted) or "a single split"
        raise DataError(f"{key}: expected {expected}; the splits of the repository are: {there}.")
    if (missing := [name for name in wanted if name not in found]) and not quiet:
        get_logger().warning(
            f"{key}: there is no split {', '.join(missing)} (available: {there}); continuing without it"
        )
    return list(found.values())


def _named(splits: dict[str, SplitFiles], name: str) -> SplitFiles | None:
    names = SYNONYMS if name in SYNONYMS else (name,)
    return next((splits[other] for other in (name, *names) if other in splits), None)
