"""Functions and classes of the user's own files and modules: `my_rewards.py:fn`, `package.module:fn`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from llmtune.errors import LlmtuneError, UsageError, one_line
from llmtune.utils.modules import import_file

SWIFT = ("swift", "swift.plugin", "swift.plugin.orm", "swift.rewards")
"""Modules that plugin files of ms-swift import their base class from."""


def own_function(place: str, name: str) -> Any:
    """Return a function, class or callable object of a file (`.py`) or an importable module.

    Raises:
        UsageError: No such file, module or function; names those that there are. LlmtuneError: The file raises.
    """
    module = _file(place) if place.endswith(".py") else _module(place)
    found = getattr(module, name, None) if name else None
    if callable(found):
        return found
    names = ", ".join(_functions_of(module)) or "none"
    what = f"{place} has no function or class {name!r}" if name else f"{place} names no function"
    raise UsageError(f"--rewards: {what}. Write {place}:NAME; it has: {names}.")


def where(err: BaseException, file: str | None = None) -> str:
    """Return `file:line` of an error: the innermost line in `file`, else the innermost of all; "" without one."""
    if isinstance(err, SyntaxError) and err.filename:
        return f"{err.filename}:{err.lineno}"
    frames = traceback.extract_tb(err.__traceback__)
    own = [frame for frame in frames if frame.filename == file] or frames
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""


def _file(path: str) -> ModuleType:
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UsageError(f"--rewards: there is no file {path} (looked for {file}).")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # the file may import its neighbours, now or when it is called
    try:
        with _stand_ins_for_swift():
            return import_file(file)
    except LlmtuneError:
        raise
    except (Exception, SystemExit) as err:
        raise LlmtuneError(_failed(f"The file {path} cannot be imported", err, str(file))) from err


def _module(name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # the console script begins without it, unlike `python -m llmtune`
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as err:
        if err.name is None or not f"{name}.".startswith(f"{err.name}."):
            raise LlmtuneError(_failed(f"The module {name} cannot be imported", err)) from err
        raise UsageError(f"--rewards: there is no module {name!r}. Name a file as path/to/file.py:fn.") from None
    except Exception as err:
        raise LlmtuneError(_failed(f"The module {name} cannot be imported", err)) from err


def _failed(what: str, err: BaseException, file: str | None = None) -> str:
    place = where(err, file)
    at = f" ({place})" if place else ""
    return f"{what}: {type(err).__name__}: {one_line(err)}{at}. Fix it, or remove it from --rewards."


def _functions_of(module: ModuleType) -> list[str]:
    """Return the names of functions and classes that a module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    ]


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
