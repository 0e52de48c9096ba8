"""Results of reward functions: checked, combined, and the lines of their errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llmtune.errors import RewardError, one_line
from llmtune.rewards.functions import RewardFunction
from llmtune.rewards.inputs import RewardInput
from llmtune.utils.modules import where

EXCERPT = 80
FORM = "Return one number per completion, or None where it does not apply"


def excerpt(text: str) -> str:
    """Return the beginning of a text on one line, in quotes."""
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= EXCERPT else f"{flat[:EXCERPT]}...")


def numbers(function: RewardFunction, result: Any, inputs: RewardInput) -> list[float | None]:
    """Return a function's result as one float or None per completion.

    Raises:
        RewardError: It is not that.
    """
    count = len(inputs.completions)
    if isinstance(result, str | bytes | dict) or not hasattr(result, "__iter__"):
        kind = type(result).__name__
        raise RewardError(f"{_subject(function)} returned {kind}, not a list of {count} rewards. {FORM}.")
    try:
        values = list(result)
    except TypeError:  # a tensor without dimensions
        values = [result]
    if len(values) != count:
        raise RewardError(f"{_subject(function)} returned {len(values)} rewards for {count} completions. {FORM}.")
    return [None if value is None else _number(function, value, inputs, row) for row, value in enumerate(values)]


def _number(function: RewardFunction, value: Any, inputs: RewardInput, row: int) -> float:
    try:
        found = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # a tensor of several values is a RuntimeError
        found = math.nan
    if not math.isfinite(found):
        raise RewardError(
            f"{_subject(function)} returned {one_line(repr(value), 60)} for {inputs.name(row)} (completion "
            f"{excerpt(inputs.completions[row])}). {FORM}."
        )
    return found


def failed(function: RewardFunction, err: BaseException, inputs: RewardInput, row: int | None) -> RewardError:
    """Return the error of a function that raised, at a row where that is known."""
    names = [inputs.name(0), inputs.name(len(inputs.completions) - 1)]
    place = where(err, function.file)
    at = (
        f"{names[0]} to {names[1]}"
        if row is None and names[0] != names[1]
        else f"{inputs.name(row or 0)} (completion {excerpt(inputs.completions[row or 0])})"
    )
    return RewardError(
        f"The reward function {function.name!r} raised {type(err).__name__}: {one_line(err)}"
        f"{f' ({place})' if place else ''} on {at}. Fix it, or return None for what it cannot score."
    )


def _subject(function: RewardFunction) -> str:
    return f"The reward function {function.name!r}{f' ({function.file})' if function.file else ''}"


def read_verl(results: Iterable[Any], log_extra: Callable[[str, list[Any]], None]) -> list[Any]:
    """Return the scores of verl's functions; of one that returns a dict, `score`, and the others as columns."""
    scores = []
    for result in results:
        if isinstance(result, dict) and "score" in result:
            for name, value in result.items():
                if name != "score":
                    log_extra(name, [value])
            result = result["score"]
        scores.append(result)
    return scores


def combine(
    per_function: Sequence[Sequence[float | None]],
    weights: Sequence[float],
    rows: Sequence[str] = (),
    completions: Sequence[str] = (),
) -> list[float]:
    """Return the weighted sum of each completion's rewards. None adds nothing, as in trl's nansum.

    Args:
        per_function: Rewards of each function, one per completion.
        weights: One per function.
        rows, completions: For the message.

    Raises:
        RewardError: Every function returned None for a completion: 0 would be a reward like any other, and count.
    """
    sums = []
    for row, values in enumerate(zip(*per_function, strict=True)):
        given = [weight * value for weight, value in zip(weights, values, strict=True) if value is not None]
        if not given:
            name = rows[row] if rows else f"completion {row}"
            shown = f" (completion {excerpt(completions[row])})" if completions else ""
            raise RewardError(
                f"Every reward function returned None for {name}{shown}: it has no reward. "
                "Remove the row, or let a function return a number for it."
            )
        sums.append(math.fsum(given))
    return sums
