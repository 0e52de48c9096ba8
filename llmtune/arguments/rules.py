"""Rules of arguments, as data beside their fields: ranges, contradictions, and the flags that have no effect."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llmtune.errors import UsageError


class Problems:
    """Collects the problems of a command's arguments."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def need(self, holds: bool, otherwise: str) -> None:
        if not isinstance(holds, bool) or not isinstance(otherwise, str):  # swapped, a check would always hold
            raise TypeError(f"need(holds, otherwise) takes a bool and a text, not {holds!r} and {otherwise!r}")
        if not holds:
            self.lines.append(otherwise)

    def raise_if_any(self) -> None:
        if self.lines:
            raise UsageError("\n".join(self.lines))


@dataclass(frozen=True)
class Range:
    """Numbers that a field takes; None always passes.

    Attributes:
        also: One more value, that means something of its own: -1. meaning: What it means.
        why: Said behind the refusal.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    also: int | None = None
    meaning: str = ""
    why: str = ""

    def holds(self, value: Any) -> bool:
        if value is None or value == self.also:
            return True
        above_low = value > self.low if self.open_low else value >= self.low
        return bool(above_low and (value < self.high if self.open_high else value <= self.high))

    def __str__(self) -> str:
        if self.high == math.inf:
            text = f"above {self.low:g}" if self.open_low else f"{self.low:g} or more"
        else:
            low = f"above {self.low:g}," if self.open_low else f"from {self.low:g}"
            text = f"{low} {'up to' if self.open_low else 'to'}{' below' if self.open_high else ''} {self.high:g}"
        extra = "" if self.also is None else f", or {self.also}{f' for {self.meaning}' if self.meaning else ''}"
        return text + extra


def at_least(low: float, *, also: int | None = None, meaning: str = "") -> Range:
    return Range(low, also=also, meaning=meaning)


def above(low: float, *, why: str = "") -> Range:
    return Range(low, open_low=True, why=why)


def between(low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> Range:
    return Range(low, high, open_low, open_high)


@dataclass(frozen=True)
class Only:
    """Values of other fields with which a flag has an effect: name -> values, all of them must hold."""

    values: dict[str, tuple[Any, ...]]

    def holds(self, args: Any) -> bool:
        return all(getattr(args, name) in values for name, values in self.values.items())


def only(**values: Any) -> Only:
    """A tuple names several values, any of which will do."""
    return Only({name: value if isinstance(value, tuple) else (value,) for name, value in values.items()})


@dataclass(frozen=True)
class Rule:
    """Something that several fields must fulfil together, in `RULES` of the class that holds them.

    Attributes:
        holds: Of the arguments.
        otherwise: The refusal; `{name}` stands for the value of a field.
    """

    holds: Callable[[Any], Any]
    otherwise: str


def check_rules(args: Any, problems: Problems) -> None:
    """Check the range of every field, and every rule of the classes that the arguments are composed of."""
    for field in dataclasses.fields(args):
        allowed, value = field.metadata.get("within"), getattr(args, field.name)
        if allowed is not None:
            why = f": {allowed.why}" if allowed.why else ""
            problems.need(allowed.holds(value), f"--{field.name} must be {allowed}, not {value}{why}.")
    for group in reversed(type(args).__mro__):
        for rule in vars(group).get("RULES", ()):
            if not rule.holds(args):
                problems.need(False, rule.otherwise.format_map(vars(args)))


def unused_flags(args: Any) -> list[str]:
    """Flags that differ from their defaults and have no effect with the values of the others.

    A class says it of a field by `only`, and of a whole group that it is composed of in `ONLY`.
    """
    groups = getattr(type(args), "ONLY", {})
    unused = []
    for field in _changed(args):
        conditions = [field.metadata.get("only")]
        conditions += [condition for group, condition in groups.items() if field.name in group.__dataclass_fields__]
        if any(condition is not None and not condition.holds(args) for condition in conditions):
            unused.append(f"--{field.name}")
    return unused


def _changed(args: Any) -> Iterator[dataclasses.Field[Any]]:
    for field in dataclasses.fields(args):
        if field.init and getattr(args, field.name) not in (field.default, []):
            yield field
