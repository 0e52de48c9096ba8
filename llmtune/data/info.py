"""Entries of the dataset registry. Data only: nothing here imports datasets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmtune.errors import UsageError
from llmtune.registry import Entry, Registry

ONLY: tuple[str, ...] = ()
"""As `train_splits`: the repository has one split, whatever its name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo(Entry):
    """One dataset: a function that makes it, the files that hold it, or its hub repository.

    Attributes:
        get_function: Takes no argument; returns a `datasets.Dataset`, a list of rows, or a pair
            (train, validation) of either. `"module:attribute"` is imported on first use.
        path: A local file or folder instead of a function.
        val_path: A local file or folder with the validation part that the dataset ships.
        dataset_id: The repository on ModelScope.
        hf_dataset_id: The repository on Hugging Face that holds the same rows.
        subsets: Subsets of the repository that make up this dataset, in this order; empty for its default.
        train_splits: Splits joined into the training part; empty where the repository has one split.
        val_splits: Splits joined into the validation part; empty where none is shipped.
        files: Paths inside the repository, where it holds more than the dataset.
        columns: Renames columns before the row is processed, `{"question": "query"}`.
        preprocess: Takes a row whose columns are renamed and returns the row to train on, a list of rows, a
            `Drop` with the reason why the dataset excludes the row, or None. `"module:attribute"` as above.
        sample: Rows drawn from all of the training part, where the dataset is a part of another one.
        default_name: Fills `{{NAME}}` where `--model_name` is not given: the Chinese form and the other.
        default_author: Fills `{{AUTHOR}}`, likewise.
        languages: ISO 639-1 codes.
        tags: Its uses, one word each.
        rows: Conversations in all parts together, after its filters; None where not counted.
        verified: Whether a public source states the ids and the row format; False for entries from memory.
        source: Where the data comes from; by default the page of its repository.
    """

    get_function: str | Callable[[], Any] | None = None
    path: str | None = None
    val_path: str | None = None
    dataset_id: str | None = None
    hf_dataset_id: str | None = None
    subsets: tuple[str, ...] = ()
    train_splits: tuple[str, ...] = ("train",)
    val_splits: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    preprocess: str | Callable[[dict[str, Any]], Any] | None = None
    sample: int | None = None
    default_name: tuple[str, ...] = ()
    default_author: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    rows: int | None = None
    verified: bool = True
    source: str = ""

    def __post_init__(self) -> None:
        origins = (self.get_function, self.path, self.dataset_id or self.hf_dataset_id)
        if sum(origin is not None for origin in origins) != 1:
            raise UsageError("A dataset entry needs a function that makes it, a path, or a hub id.")
        if not self.source and self.dataset_id:
            object.__setattr__(self, "source", f"https://modelscope.cn/datasets/{self.dataset_id}")
        elif not self.source and self.hf_dataset_id:
            object.__setattr__(self, "source", f"https://huggingface.co/datasets/{self.hf_dataset_id}")


DATASET_MAPPING: Registry[DatasetInfo] = Registry(
    "dataset",
    DatasetInfo,
    builtin="llmtune.data.families",
    function_field="get_function",
    entry_points="llmtune.datasets",
    list_command="llmtune list datasets",
)
register_dataset = DATASET_MAPPING.register
