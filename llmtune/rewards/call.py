"""Calling reward functions, those written for trl, ms-swift and verl unchanged."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmtune.rewards.functions import RewardFunction
from llmtune.rewards.inputs import RewardInput
from llmtune.rewards.results import failed, numbers, read_verl
from llmtune.utils.logging import get_logger
from llmtune.utils.waiting import gather, wait

SLOW_SECONDS = 10.0
"""A call that takes longer is logged, once per function."""
SEARCH_SECONDS = 10.0
"""Time for finding the row at which a function fails."""


@dataclass(kw_only=True)
class Scored:
    """Rewards of one function for one batch of completions.

    Attributes:
        values: One per completion; None: the function does not apply to the row.
        seconds: Time of the call.
        metrics: Values of `log_metric(name, value)`, to be averaged over a logging step as in trl.
        extra: Columns of `log_extra(column, values)`, for tables of completions.
    """

    values: list[float | None] = field(default_factory=list)
    seconds: float = 0.0
    metrics: dict[str, list[float]] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)

    def log_metric(self, name: str, value: float) -> None:
        self.metrics.setdefault(name, []).append(float(value))

    def log_extra(self, column: str, values: Iterable[Any]) -> None:
        self.extra.setdefault(column, []).extend(values)


def score(function: RewardFunction, inputs: RewardInput) -> list[float | None]:
    """Return the rewards of one function, one per completion.

    Raises:
        RewardError: It raises, or returns something else than a finite number or None per completion.
    """
    return score_all([function], inputs)[0].values


def score_all(functions: Sequence[RewardFunction], inputs: RewardInput) -> list[Scored]:
    """Call reward functions on the same completions: one after the other, asynchronous ones concurrently at the end.

    Raises:
        RewardError: One of them raises, or returns something else than a finite number or None per completion.
    """
    if not inputs.completions:
        return [Scored() for _ in functions]
    found = {place: _call(one, inputs) for place, one in enumerate(functions) if not one.is_async}
    concurrent = [place for place, one in enumerate(functions) if one.is_async]
    if concurrent:
        calls = (_call_async(functions[place], inputs) for place in concurrent)
        found |= zip(concurrent, wait(gather(calls)), strict=True)
    for place, function in enumerate(functions):
        _log_slow(function, found[place].seconds, len(inputs.completions))
    return [found[place] for place in range(len(functions))]


def _call(function: RewardFunction, inputs: RewardInput) -> Scored:
    scored, began = Scored(), time.perf_counter()
    try:
        result = _result(function, inputs, scored)
    except (Exception, SystemExit) as err:
        raise failed(function, err, inputs, _failing_row(function, err, inputs)) from err
    scored.seconds = time.perf_counter() - began
    scored.values = numbers(function, result, inputs)
    return scored


async def _call_async(function: RewardFunction, inputs: RewardInput) -> Scored:
    scored, began = Scored(), time.perf_counter()
    try:
        result = await _awaited(function, inputs, scored)
    except (Exception, SystemExit) as err:
        # In a thread, as it waits for this very loop.
        row = await asyncio.to_thread(_failing_row, function, err, inputs)
        raise failed(function, err, inputs, row) from err
    scored.seconds = time.perf_counter() - began
    scored.values = numbers(function, result, inputs)
    return scored


def _result(function: RewardFunction, inputs: RewardInput, scored: Scored) -> Any:
    """Return the function's own result; of one that hands back a coroutine, that of the coroutine."""
    if function.is_async:
        return wait(_awaited(function, inputs, scored))
    calls = [function.function(**arguments) for arguments in _arguments(function, inputs, scored)]
    results = [wait(call) if inspect.isawaitable(call) else call for call in calls]
    return read_verl(results, scored.log_extra) if function.is_verl else results[0]


async def _awaited(function: RewardFunction, inputs: RewardInput, scored: Scored) -> Any:
    results = await gather(function.function(**arguments) for arguments in _arguments(function, inputs, scored))
    return read_verl(results, scored.log_extra) if function.is_verl else results[0]


def _arguments(function: RewardFunction, inputs: RewardInput, scored: Scored) -> list[dict[str, Any]]:
    """Return the arguments of each call: one for all completions, or one per completion for verl's functions."""
    if function.is_verl:
        rows = (inputs.verl_row(row) for row in range(len(inputs.completions)))
        given = [{**row, **function.options} for row in rows]
    else:
        shown = inputs.shown_completions(function.form)
        sinks = {"log_extra": scored.log_extra, "log_metric": scored.log_metric}
        given = [{**inputs.arguments(), **sinks, "completions": shown, **function.options}]
    if function.takes_all:
        return given
    return [{name: value for name, value in one.items() if name in function.names} for one in given]


def _failing_row(function: RewardFunction, err: BaseException, inputs: RewardInput) -> int | None:
    """Call the function row by row, for at most `SEARCH_SECONDS`; None where no row fails in the same way."""
    end = time.perf_counter() + SEARCH_SECONDS
    for row in range(len(inputs.completions)):
        try:
            _result(function, inputs.only(row), Scored())
        except (Exception, SystemExit) as again:
            return row if type(again) is type(err) else None
        if time.perf_counter() > end:
            return None
    return None


def _log_slow(function: RewardFunction, seconds: float, num_completions: int) -> None:
    if seconds > SLOW_SECONDS and not function.logged_slow:
        function.logged_slow = True
        get_logger().warning(
            "The reward function %r took %.1f s for %d completions, %.2f s per completion, and training waits for it. "
            "Make it an async function if it waits for a server.",
            function.name, seconds, num_completions, seconds / num_completions,
        )  # fmt: skip
