"""Metadata beside an argument's default: what happens on resume, the numbers it takes, the flags it depends on.

On resume, `llmtune.arguments.inheritance` applies one rule. An argument that the resuming command does not give is the
checkpoint's, except `free` ones. If it is given and differs:

- `fixed`: refused, with both values: another value would be another run.
- `taken`: used from here on, and the change is logged.
- `free`: used; it belongs to one start of the run (processes, paths, tokens) and is never read from the checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar, Union

from llmtune.errors import UsageError

OnResume = Literal["fixed", "taken", "free"]
KEY = "on_resume"
TEXTS = ("system", "chat_template_kwargs", "api_key", "hub_token", "setup")
"""Free texts, which are not names and may be long."""
EMPTY_IS_ONE = "system"
MAX_NAME_BYTES = 255
LISTS_OF_PATHS = ("ckpt_dir", "adapters")


def _argument(
    kind: OnResume | None,
    default: Any = dataclasses.MISSING,
    within: Range | None = None,
    *,
    factory: Callable[[], Any] | None = None,
    only: Only | None = None,
) -> Any:
    """`within`: the numbers it takes. `only`: with which values of other fields it has an effect."""
    metadata = {KEY: kind, "within": within, "only": only}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


fixed, taken, free = partial(_argument, "fixed"), partial(_argument, "taken"), partial(_argument, "free")
"""A field of a run's arguments."""
limited = partial(_argument, None)
"""A field of a command without runs to resume."""


def on_resume(field: dataclasses.Field[Any]) -> OnResume:
    """Return how a field of the training arguments behaves on resume.

    Raises:
        KeyError: The field does not declare it.
    """
    found: OnResume = field.metadata[KEY]
    return found


ArgumentsT = TypeVar("ArgumentsT", bound="Given")


class Given:
    """Arguments that remember which of them were given; the others have their defaults.

    `given`: names of the arguments that were passed with a value: neither None nor an empty list.
    `changed_on_resume`: those that differ from the checkpoint's, once a run is resumed.
    """

    __slots__ = ("changed_on_resume", "given")  # beside the fields, which `vars` has

    given: frozenset[str]
    changed_on_resume: frozenset[str]

    def __new__(cls: type[ArgumentsT], *_: Any, **values: Any) -> ArgumentsT:
        made = super().__new__(cls)
        made.changed_on_resume = frozenset()
        made.given = frozenset(name for name, value in values.items() if value is not None and value != [])
        return made


def settle_texts(args: Any) -> None:
    """Treat an empty text as a flag that was not given: as a path, it would be the working folder.

    An empty system prompt counts as given.

    Raises:
        UsageError: A name that is too long for any file system.
    """
    for item in dataclasses.fields(args):
        value = getattr(args, item.name)
        if value == "" and item.name != EMPTY_IS_ONE and item.default is not dataclasses.MISSING:
            setattr(args, item.name, item.default)
            args.given = args.given - {item.name}
        elif isinstance(value, list) and item.name in LISTS_OF_PATHS:
            setattr(args, item.name, [one for one in value if one != ""])
        elif isinstance(value, str) and item.name not in TEXTS:
            longest = max(len(part.encode("utf-8", "replace")) for part in value.split("/"))
            if longest > MAX_NAME_BYTES:
                raise UsageError(
                    f"--{item.name} has a name of {longest} bytes; file systems take at most {MAX_NAME_BYTES}."
                )


def fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON has the type of a field (`typing.get_type_hints`)."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        value = shown(value) if isinstance(value, bool) and "auto" in inner else value  # a switch before it had an auto
        return any(value == one and type(value) is type(one) for one in inner)
    if origin is list:
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint in (int, str, bool, types.NoneType):
        return type(value) is hint
    return True


def shown(value: Any) -> str:
    """A value as written for a flag."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(map(str, value)) or "nothing"
    if isinstance(value, str) and (" " in value or not value):
        return repr(value)
    return "nothing" if value is None else str(value)


# Ranges, contradictions, and the flags that have no effect


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
    for field in changed(args):
        conditions = [field.metadata.get("only")]
        conditions += [condition for group, condition in groups.items() if field.name in group.__dataclass_fields__]
        if any(condition is not None and not condition.holds(args) for condition in conditions):
            unused.append(f"--{field.name}")
    return unused


def changed(args: Any) -> Iterator[dataclasses.Field[Any]]:
    for field in dataclasses.fields(args):
        if field.init and getattr(args, field.name) not in (field.default, []):
            yield field
