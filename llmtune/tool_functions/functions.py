"""Specs of `--tool_functions`: keys of TOOL_MAPPING, `my_tools.py`, `my_tools.py:fn`, `package.module:fn`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from llmtune.errors import UsageError, one_line
from llmtune.registry import resolve_reference
from llmtune.tool_functions.info import TOOL_MAPPING
from llmtune.utils.modules import own_module

FLAG = "--tool_functions"


@dataclass(frozen=True, kw_only=True)
class ToolFunction:
    """A function that a model may call.

    Attributes:
        name: The name that calls have: the key, or that of the function.
        given_schema: Its schema, where one was given.
        text: As the user wrote it in --tool_functions.
    """

    name: str
    function: Callable[..., Any]
    given_schema: Mapping[str, Any] | None = None
    text: str = field(default="", compare=False)

    def schema(self) -> dict[str, Any]:
        """Return its schema as in the column `tools`.

        Raises:
            UsageError: Its type hints or its docstring lack what a schema needs.
        """
        if self.given_schema is not None:
            given = dict(self.given_schema)
            return given if "function" in given else {"type": "function", "function": given}
        from transformers.utils.chat_template_utils import get_json_schema

        try:
            found: dict[str, Any] = get_json_schema(self.function)
        except Exception as err:
            why = one_line(err).rstrip(".!")
            raise UsageError(
                f"{FLAG} {self.text}: {self.name!r}{_place(self.function)} has no schema: {why}. Give each argument a "
                "type and a line under `Args:` in the docstring, or use register_tool(..., schema=...)."
            ) from err
        found["function"]["name"] = self.name
        return found


def load_tools(texts: Sequence[str]) -> dict[str, ToolFunction]:
    """Return the functions that `--tool_functions` names, by name. Files and modules of the user are imported.

    Raises:
        UsageError: Unknown key, file or function; the same name twice. LlmtuneError: A file raises.
    """
    found: dict[str, ToolFunction] = {}
    for text in texts:
        for tool in _functions(text.strip()):
            other = found.setdefault(tool.name, tool)
            if other != tool:
                raise UsageError(
                    f"{FLAG}: {other.text} and {tool.text} both have a function {tool.name!r}. Keep one, or rename it."
                )
    return found


def _functions(text: str) -> list[ToolFunction]:
    place, colon, name = text.rpartition(":")
    if text.endswith(".py"):
        return _of_module(text, own_module(text, FLAG))
    if colon and place:
        return [_named(text, own_module(place, FLAG), name)]
    key = TOOL_MAPPING.canonical(text)
    return [_entry(text, key)]


def _entry(text: str, key: str) -> ToolFunction:
    info = TOOL_MAPPING[key]
    function = resolve_reference(info.function, what=f"The tool {key!r}")
    return ToolFunction(name=key, function=function, given_schema=info.schema, text=text)


def _of_module(text: str, module: ModuleType) -> list[ToolFunction]:
    """Return the tools that a file registers; of one that registers none, its public typed functions."""
    registered = _registered(module)
    if registered:
        return [_entry(text, key) for key in registered]
    typed = [one for one in _own_functions(module) if _is_typed(one)]
    if not typed:
        raise UsageError(
            f"{FLAG}: {text} registers no tool, and has no public function with types and a docstring. Put "
            '@register_tool("name") above a function.'
        )
    return [ToolFunction(name=one.__name__, function=one, text=text) for one in typed]


def _named(text: str, module: ModuleType, name: str) -> ToolFunction:
    function = getattr(module, name, None)
    for key in _registered(module):
        if key == name or (function is not None and TOOL_MAPPING[key].function is function):
            return _entry(text, key)
    if callable(function):
        return ToolFunction(name=name, function=function, text=text)
    names = ", ".join([*_registered(module), *(one.__name__ for one in _own_functions(module))]) or "none"
    raise UsageError(f"{FLAG} {text}: there is no function {name!r}. It has: {names}.")


def _registered(module: ModuleType) -> list[str]:
    """Return the keys that a module has registered."""
    file = getattr(module, "__file__", None)
    return [key for key in TOOL_MAPPING if file and TOOL_MAPPING.origin(key).rpartition(":")[0] == file]


def _own_functions(module: ModuleType) -> Iterable[Callable[..., Any]]:
    return [
        value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_") and value.__module__ == module.__name__
    ]


def _is_typed(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return bool(inspect.getdoc(function)) and all(one.annotation is not one.empty for one in parameters)


def _place(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
