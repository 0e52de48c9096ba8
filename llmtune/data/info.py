"""What a data set entry says. Data only: nothing here imports datasets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmtune.errors import UsageError
from llmtune.registry import Registry

__all__ = ["DATASET_MAPPING", "DatasetInfo", "register_dataset"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """One data set: a function that makes it, or the files that hold it.

    Attributes:
        get_function: Takes no argument; returns a `datasets.Dataset`, a list of rows, or a pair
            (train, validation) of either. `"module:attribute"` is imported on first use.
        path: A local file or folder instead of a function.
        val_path: A local file or folder with the validation part that the data set ships.
        columns: Renames columns before the row's shape is recognised, `{"question": "query"}`.
        default_name: Fills `{{NAME}}` where `--model_name` is not given: the Chinese form and the other.
        default_author: Fills `{{AUTHOR}}`, likewise.
        source: Where the data comes from.
    """

    get_function: str | Callable[[], Any] | None = None
    path: str | None = None
    val_path: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    default_name: tuple[str, ...] = ()
    default_author: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if (self.get_function is None) == (self.path is None):
            raise UsageError("A data set entry needs either a function that makes it or a path.")


DATASET_MAPPING: Registry[DatasetInfo] = Registry(
    "data set",
    DatasetInfo,
    builtin="llmtune.data.families",
    function_field="get_function",
    entry_points="llmtune.datasets",
    list_command="llmtune list datasets",
)
register_dataset = DATASET_MAPPING.register
