"""Python files and modules that the user names, imported by their path or name."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType

from llmtune.errors import LlmtuneError, UsageError, one_line


def import_file(file: Path) -> ModuleType:
    """Import a file once in a process: a second call returns the same module.

    Raises:
        ImportError: It is not a Python file. Whatever the file raises is passed on.
    """
    name = f"llmtune_custom_{file.stem}_{abs(hash(str(file)))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def own_module(place: str, flag: str) -> ModuleType:
    """Import a file (`.py`) or a module that a flag names.

    Raises:
        UsageError: There is no such file or module. LlmtuneError: It raises.
    """
    return _file(place, flag) if place.endswith(".py") else _module(place, flag)


def own_names(module: ModuleType) -> list[str]:
    """Return the names of functions and classes that a module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    ]


def where(err: BaseException, file: str | None = None) -> str:
    """Return `file:line` of an error: the innermost line in `file`, else the innermost of all; "" without one."""
    if isinstance(err, SyntaxError) and err.filename:
        return f"{err.filename}:{err.lineno}"
    frames = traceback.extract_tb(err.__traceback__)
    own = [frame for frame in frames if frame.filename == file] or frames
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""


def _file(path: str, flag: str) -> ModuleType:
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UsageError(f"{flag}: there is no file {path} (looked for {file}).")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # the file may import its neighbours, now or when it is called
    try:
        return import_file(file)
    except LlmtuneError:
        raise
    except (Exception, SystemExit) as err:
        raise LlmtuneError(_failed(f"The file {path} cannot be imported", err, flag, str(file))) from err


def _module(name: str, flag: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # the console script begins without it, unlike `python -m llmtune`
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as err:
        if err.name is None or not f"{name}.".startswith(f"{err.name}."):
            raise LlmtuneError(_failed(f"The module {name} cannot be imported", err, flag)) from err
        raise UsageError(f"{flag}: there is no module {name!r}. Name a file as path/to/file.py:fn.") from None
    except Exception as err:
        raise LlmtuneError(_failed(f"The module {name} cannot be imported", err, flag)) from err


def _failed(what: str, err: BaseException, flag: str, file: str | None = None) -> str:
    place = where(err, file)
    at = f" ({place})" if place else ""
    return f"{what}: {type(err).__name__}: {one_line(err)}{at}. Fix it, or remove it from {flag}."
