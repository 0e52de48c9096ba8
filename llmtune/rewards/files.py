"""Functions and classes of the user's own files and modules: `my_rewards.py:fn`, `package.module:fn`."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from llmtune.errors import UsageError
from llmtune.utils.modules import own_module, own_names

SWIFT = ("swift", "swift.plugin", "swift.plugin.orm", "swift.rewards")
"""Modules that plugin files of ms-swift import their base class from."""


def own_function(place: str, name: str) -> Any:
    """Return a function, class or callable object of a file (`.py`) or an importable module.

    Raises:
        UsageError: No such file, module or function; names those that there are. LlmtuneError: The file raises.
    """
    with _stand_ins_for_swift() if place.endswith(".py") else contextlib.nullcontext():
        module = own_module(place, "--rewards")
    found = getattr(module, name, None) if name else None
    if callable(found):
        return found
    names = ", ".join(own_names(module)) or "none"
    what = f"{place} has no function or class {name!r}" if name else f"{place} names no function"
    raise UsageError(f"--rewards: {what}. Write {place}:NAME; it has: {names}.")


@contextlib.contextmanager
def _stand_ins_for_swift() -> Iterator[None]:
    """Let files that subclass ms-swift's `ORM` be imported where ms-swift is not installed."""
    if importlib.util.find_spec("swift") is not None:
        yield
        return
    base = type("ORM", (), {})
    for name in SWIFT:
        module = ModuleType(name)
        module.__path__ = []
        vars(module).update(ORM=base, AsyncORM=base, orms={})
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in SWIFT:
            del sys.modules[name]
