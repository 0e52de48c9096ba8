"""What becomes of an argument when a run is resumed, written beside its default: fixed, taken or free.

One rule for all of them, which `llmtune.arguments.resume` follows. Whatever is not given in the resuming command is
the checkpoint's, but for `free` ones. Where it is given and differs:

- `fixed`: refused, with both values. Another value would be another run under the old one's name.
- `taken`: followed from here on, and the log says from what to what.
- `free`: followed; it belongs to this start of the run alone (processes, places, tokens), and is never taken over.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union

from llmtune.errors import UsageError

__all__ = ["Given", "OnResume", "fits", "fixed", "free", "on_resume", "settle_texts", "shown", "taken"]

OnResume = Literal["fixed", "taken", "free"]
KEY = "on_resume"
TEXTS = ("system", "chat_template_kwargs", "api_key", "hub_token", "setup")
"""Texts that name nothing, and may be long."""
EMPTY_IS_ONE = "system"
MAX_NAME_BYTES = 255
LISTS_OF_PATHS = ("ckpt_dir", "adapters")


def fixed(default: Any = dataclasses.MISSING, *, factory: Callable[[], Any] | None = None) -> Any:
    """A field that a checkpoint fixes."""
    return _marked("fixed", default, factory)


def taken(default: Any = dataclasses.MISSING, *, factory: Callable[[], Any] | None = None) -> Any:
    """A field that is taken over from a checkpoint where it is not given, and may change."""
    return _marked("taken", default, factory)


def free(default: Any = dataclasses.MISSING, *, factory: Callable[[], Any] | None = None) -> Any:
    """A field that belongs to one start of a run alone."""
    return _marked("free", default, factory)


def on_resume(field: dataclasses.Field[Any]) -> OnResume:
    """What becomes of a field of the training arguments on resume.

    Raises:
        KeyError: Nobody has said so beside the field.
    """
    found: OnResume = field.metadata[KEY]
    return found


def _marked(kind: OnResume, default: Any, factory: Callable[[], Any] | None) -> Any:
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata={KEY: kind})
    return dataclasses.field(default=default, metadata={KEY: kind})


ArgumentsT = TypeVar("ArgumentsT", bound="Given")


class Given:
    """Arguments that remember which of them were given; the others stand at their defaults.

    `given`: names of the arguments that the constructor got with a value: neither None nor an empty list.
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
    """Let an empty text mean what leaving the flag out means: as a path, it would be the working folder.

    An empty system prompt is one.

    Raises:
        UsageError: A name that no file system has room for.
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
                    f"--{item.name} has a name of {longest} bytes, and no file system takes more than 255."
                )


def fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of the type of a field, as `typing.get_type_hints` tells it."""
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
    """A value as a flag has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(map(str, value)) or "nothing"
    if isinstance(value, str) and (" " in value or not value):
        return repr(value)
    return "nothing" if value is None else str(value)
