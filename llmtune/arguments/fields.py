"""How an argument behaves on resume, declared next to its default: fixed, taken or free.

`llmtune.arguments.inheritance` applies one rule. An argument that the resuming command does not give is the
checkpoint's, except `free` ones. If it is given and differs:

- `fixed`: refused, with both values: another value would be another run.
- `taken`: used from here on, and the change is logged.
- `free`: used; it belongs to one start of the run (processes, paths, tokens) and is never read from the checkpoint.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union

from llmtune.arguments.rules import Only, Range
from llmtune.errors import UsageError

OnResume = Literal["fixed", "taken", "free"]
KEY = "on_resume"
TEXTS = ("system", "chat_template_kwargs", "api_key", "hub_token", "setup")
"""Free texts, which are not names and may be long."""
EMPTY_IS_ONE = "system"
MAX_NAME_BYTES = 255
LISTS_OF_PATHS = ("ckpt_dir", "adapters")


def fixed(default: Any = dataclasses.MISSING, **rules: Any) -> Any:
    """A field that a checkpoint fixes. `rules`: see `_marked`."""
    return _marked("fixed", default, **rules)


def taken(default: Any = dataclasses.MISSING, **rules: Any) -> Any:
    """A field that is read from a checkpoint if not given, and may change."""
    return _marked("taken", default, **rules)


def free(default: Any = dataclasses.MISSING, **rules: Any) -> Any:
    """A field that belongs to one start of a run."""
    return _marked("free", default, **rules)


def on_resume(field: dataclasses.Field[Any]) -> OnResume:
    """Return how a field of the training arguments behaves on resume.

    Raises:
        KeyError: The field does not declare it.
    """
    found: OnResume = field.metadata[KEY]
    return found


def _marked(
    kind: OnResume,
    default: Any,
    *,
    factory: Callable[[], Any] | None = None,
    within: Range | None = None,
    only: Only | None = None,
) -> Any:
    """`within`: the numbers it takes. `only`: with which values of other fields it has an effect."""
    metadata = {KEY: kind, "within": within, "only": only}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


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
