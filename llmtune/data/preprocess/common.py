"""Helpers of preprocess functions, and the types that they may return."""

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

Row: TypeAlias = "dict[str, Any]"
Preprocess: TypeAlias = "Callable[[dict[str, Any]], Any]"


@dataclass(frozen=True, slots=True)
class Drop:
    """Returned instead of a row that the dataset excludes. A filter, not an error: `--strict` allows it.

    `reason`: one of a few fixed texts, since the report counts each.
    """

    reason: str


def preprocess_row(function: Preprocess, row: Row) -> list[Row] | Drop:
    """Call a preprocess function; errors become a RowError.

    Raises:
        RowError: The function raised an error, or returned something other than it may.
    """
    try:
        made = function(row)
    except (LlmtuneError, MemoryError):
        raise
    except (Exception, SystemExit) as err:  # third-party code may raise anything
        cause = f"there is no column {err}" if isinstance(err, KeyError) else cause_of(err)
        raise RowError(f"the dataset's preprocess function {name_of(function)} fails on it: {cause}") from err
    if made is None:
        return Drop("dropped by its preprocess function")
    if isinstance(made, Drop):
        return made
    rows = [made] if isinstance(made, Mapping) else made
    if not isinstance(rows, (list, tuple)) or not all(isinstance(item, Mapping) for item in rows):
        raise RowError(
            f"the dataset's preprocess function returned {kind_of(made)} for it, not a row or a list of rows"
        )
    return [dict(item) for item in rows]


def name_of(function: Any) -> str:
    """Return `module.function`, for errors."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', None) or '?'}.{name}"


def cause_of(err: BaseException) -> str:
    """Return an exception of third-party code in one line."""
    return " ".join(f"{type(err).__name__}: {err}".split()).removesuffix(":")


def code_version(function: Preprocess) -> str:
    """Return a digest of a function and of its source file: the same in every process until one of them changes."""
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
    """Return a cell that must hold text.

    Raises:
        RowError: It is absent, null, or holds something else.
    """
    text = text_or_none(row, key)
    if text is None:
        found = ", ".join(repr(name) for name, cell in row.items() if cell is not None)
        raise RowError(f"column {key!r} is missing or null; the row has {found or 'none'}")
    return text
