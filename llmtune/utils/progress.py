"""Progress bars: drawn on a terminal and in a notebook, nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, whose streams are no terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def draws_bars() -> bool:
    return sys.stderr.isatty() or in_notebook()


def progress_bar(items: Iterable[Any] | None = None, *, quiet: bool = False, **options: Any) -> tqdm[Any]:
    """Return tqdm's bar: a widget where a notebook has them, text otherwise.

    Args:
        quiet: No bar here either.
        options: As of tqdm: `total`, `desc`, `unit`, `leave`, ...
    """
    from tqdm.auto import tqdm

    return tqdm(items, disable=quiet or not draws_bars(), **options)


def write_above(line: str) -> None:
    """Write a line above the bars that are being drawn."""
    from tqdm.auto import tqdm

    tqdm.write(line, file=sys.stderr)
