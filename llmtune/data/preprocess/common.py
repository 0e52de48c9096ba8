"""What a preprocess function may return, and what all of them need."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

from llmtune.data.values import kind_of, text_or_none
from llmtune.errors import LlmtuneError, RowError

__all__ = ["Drop", "Preprocess", "Row", "cause_of", "code_version", "name_of", "preprocess_row", "text_of"]

Row: TypeAlias = "dict[str, Any]"
Preprocess: TypeAlias = "Callable[[dict[str, Any]], Any]"


@dataclass(frozen=True, slots=True)
class Drop:
    """Instead of a row: the data set is defined without it. A filter, not a fault: `--strict` lets it pass.

    `reason`: from a handful of fixed texts, since the report counts how often each was given.
    """

    reason: str


def preprocess_row(function: Preprocess, row: Row) -> list[Row] | Drop:
    """Call a preprocess function; what is wrong with a row becomes a RowError that says so.

    Raises:
        RowError: The function raised one, tripped over the row, or returned something other than it may.
    """
    try:
        made = function(row)
    except (LlmtuneError, MemoryError):
        raise
    except (Exception, SystemExit) as err:  # a stranger's code may raise anything
        cause = f"there is no column {err}" if isinstance(err, KeyError) else cause_of(err)
        raise RowError(f"the data set's preprocess function {name_of(function)} fails on it: {cause}") from err
    if made is None:
        return Drop("left out by its preprocess function")
    if isinstance(made, Drop):
        return made
    rows = [made] if isinstance(made, Mapping) else made
    if not isinstance(rows, (list, tuple)) or not all(isinstance(item, Mapping) for item in rows):
        raise RowError(f"the data set's preprocess function made {kind_of(made)} of it, not a row or a list of rows")
    return [dict(item) for item in rows]


def name_of(function: Any) -> str:
    """`module.function`, for errors."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', None) or '?'}.{name}"


def cause_of(err: BaseException) -> str:
    """An exception of a stranger's code, in one line."""
    return " ".join(f"{type(err).__name__}: {err}".split()).removesuffix(":")


def code_version(function: Preprocess) -> str:
    """A digest of a function and of the file that it stands in: the same in every process until one is changed."""
    code = getattr(function, "__code__", None)
    own: object = repr(function)
    if code is not None:  # sets and inner functions have another repr in each process
        constants = [value for value in code.co_consts if isinstance(value, (str, bytes, int, float))]
        own = (code.co_firstlineno, code.co_code, constants, code.co_names)
    name = (getattr(function, "__module__", ""), getattr(function, "__qualname__", ""))
    digest = blake2b(repr((name, own)).encode("utf-8", "surrogatepass"), digest_size=16)
    with contextlib.suppress(OSError, TypeError):  # typed at a prompt, or an object that can be called
        digest.update(Path(inspect.getsourcefile(inspect.unwrap(function)) or "").read_bytes())
    return digest.hexdigest()


def text_of(row: Mapping[str, Any], key: str) -> str:
    """A cell that must hold text.

    Raises:
        RowError: It is absent, null, or holds something else.
    """
    text = text_or_none(row, key)
    if text is None:
        found = ", ".join(repr(name) for name, cell in row.items() if cell is not None)
        raise RowError(f"column {key!r} is missing or null; the row has {found or 'none'}")
    return text
