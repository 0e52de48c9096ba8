"""Running the calls of a model: a call that fails has a text as its result, which the model reads and may act on."""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmtune.errors import one_line
from llmtune.tool_functions.functions import ToolFunction
from llmtune.types import ToolCall
from llmtune.utils.logging import log_once
from llmtune.utils.modules import where
from llmtune.utils.waiting import wait

ERROR = "Error: "
"""How the result of a call begins that has failed."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The result of a call, as the model reads it.

    Attributes:
        has_failed: The text says why there is none.
        is_cut: The text is the beginning of a longer one.
    """

    text: str
    has_failed: bool = False
    is_cut: bool = False


@dataclass(frozen=True)
class ToolBox:
    """Functions that a model may call.

    Attributes:
        functions: By the names that calls have.
        timeout_s: Seconds after which a call fails.
        max_chars: Most characters of a result.
    """

    functions: Mapping[str, ToolFunction]
    timeout_s: float = 30.0
    max_chars: int = 2000

    def call(self, call: ToolCall, offered: Sequence[str] | None = None) -> ToolResult:
        """Return the result of a call, or why it failed.

        Args:
            offered: Names that the row offers; None: all.
        """
        names = [name for name in self.functions if offered is None or name in offered]
        if call.name not in names:
            return _failed(f"there is no function {call.name!r}. Functions: {', '.join(names) or 'none'}.")
        arguments = _arguments(call)
        if arguments is None:
            return _failed("the arguments of a call are a JSON object.")
        function = self.functions[call.name].function
        if problem := _misfit(function, arguments):
            return _failed(f"{call.name}: {problem}.")
        return self._result(call.name, lambda: _text(_called(function, arguments)))

    def _result(self, name: str, run: Callable[[], str]) -> ToolResult:
        found = _within(self.timeout_s, run)
        if found is None:
            log_once(f"The tool {name!r} has not returned within {self.timeout_s:g} s; its result says so.")
            return _failed(f"{name} has not returned within {self.timeout_s:g} seconds.")
        if isinstance(found, BaseException):
            place = where(found)
            log_once(f"The tool {name!r} raised {type(found).__name__} ({place}); its result says so.")
            return _failed(f"{type(found).__name__}: {one_line(found, self.max_chars)}")
        return ToolResult(found[: self.max_chars], is_cut=len(found) > self.max_chars)


def _failed(text: str) -> ToolResult:
    return ToolResult(ERROR + text, has_failed=True)


def _arguments(call: ToolCall) -> dict[str, Any] | None:
    """Return the arguments of a call; None where they are no JSON object."""
    found = call.arguments
    if isinstance(found, str):
        try:
            found = json.loads(found) if found.strip() else {}
        except (ValueError, RecursionError):
            return None
    return dict(found) if isinstance(found, Mapping) else None


def _misfit(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Say why a function cannot be called with the arguments; "" if it can."""
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as err:
        return str(err)
    except ValueError:  # no signature, as some functions of C have none
        return ""
    return ""


def _called(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    found = function(**arguments)
    return wait(found) if inspect.isawaitable(found) else found


def _text(value: Any) -> str:
    """Return a result as the model reads it: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _within(seconds: float, run: Callable[[], str]) -> str | BaseException | None:
    """Return what `run` returns or raises; None where it takes longer. It then goes on in its thread, unheard."""
    found: list[str | BaseException] = []

    def work() -> None:
        try:
            found.append(run())
        except BaseException as err:
            found.append(err)

    # A thread for each call: a process cannot end one that hangs, and no other call has to wait for it.
    thread = threading.Thread(target=work, name="llmtune-tool", daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None
