"""Generic registry: a read-only mapping from keys to typed entries that knows the origin of each.

Registering is pure: no file, no network, no torch. Functions named by an entry are imported on first use.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from llmtune.errors import DuplicateKeyError, LlmtuneError, ReadOnlyError, UnknownKeyError, UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


EntryT = TypeVar("EntryT")
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

PLUGINS_VARIABLE = "LLMTUNE_PLUGINS"


class Entry:
    """Base class of entries, read by attribute, where the dicts of 2023 were read by key.

    `dict(entry)` makes such a dict.
    """

    __slots__ = ()

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((field.name, getattr(self, field.name)) for field in dataclasses.fields(cast("Any", self)))

    def __getitem__(self, name: str) -> Any:
        kind = type(self).__name__
        raise ReadOnlyError(f"Entries are read by attribute: entry.{name}; dict(entry) converts this {kind} to a dict.")

    def get(self, name: str, *_: Any) -> Any:
        return self[name]


class Registry(Mapping[str, EntryT], Generic[EntryT]):
    """A read-only mapping; entries are added by `register`, as a call or as a decorator.

    Args:
        kind: Kind of the entries, in the singular: `model`, `dataset`.
        entry_type: A frozen dataclass; `register("key", **fields)` builds it.
        builtin: The package whose import registers the entries that ship with llmtune; imported on first look-up.
        function_field: The field of a decorated function; None refuses decoration.
        field_aliases: Other spellings of field names that `register` accepts.
        entry_points: The entry-point group of plugins. A plugin's entry-point name is the key.
        list_command: The command that lists all keys.
    """

    def __init__(
        self,
        kind: str,
        entry_type: type[EntryT],
        *,
        builtin: str | None = None,
        function_field: str | None = None,
        field_aliases: Mapping[str, str] | None = None,
        entry_points: str | None = None,
        list_command: str = "",
    ) -> None:
        self.kind = kind
        self.entry_type = entry_type
        self._builtin = builtin
        self._function_field = function_field
        self._field_aliases = dict(field_aliases or {})
        self._group = entry_points
        self._list_command = list_command
        self._entries: dict[str, EntryT] = {}
        self._origins: dict[str, str] = {}
        self._aliases: dict[str, str] = {}

    # Registering

    def register(
        self,
        key: str,
        entry: EntryT | Callable[..., Any] | None = None,
        *,
        replace: bool = False,
        aliases: tuple[str, ...] = (),
        **fields: Any,
    ) -> Any:
        """Register an entry, or decorate its function.

        `register("k", Entry(...))`, `register("k", field=value)` and `register("k", function)` return None or the
        function; `@register("k")` and `@register("k", field=value)` above a function store and return it unchanged.

        Raises:
            DuplicateKeyError: The key is taken and `replace` is false.
            UsageError: The entry has another type, or a field is unknown.
        """
        origin = _caller_location()
        if isinstance(entry, self.entry_type):
            if fields:
                raise UsageError(f"register_{self._slug}({key!r}): give an entry or its fields, not both.")
            self._add(key, entry, origin=origin, replace=replace, aliases=aliases)
            return None
        if callable(entry):
            self._add_function(key, entry, fields, origin=origin, replace=replace, aliases=aliases)
            return entry
        if entry is not None:
            expected = self.entry_type.__name__
            raise UsageError(f"register_{self._slug}({key!r}): expected {expected}, not {type(entry).__name__}.")
        built = self._try_build(key, fields)
        if built is not None:
            self._add(key, built, origin=origin, replace=replace, aliases=aliases)

        def decorate(function: FunctionT) -> FunctionT:
            self._remove_own(key, origin)
            self._add_function(key, function, fields, origin=origin, replace=replace, aliases=aliases)
            return function

        return decorate

    def alias(self, alias: str, key: str, *, replace: bool = False) -> None:
        """Register `alias` as another name of `key`, which may be registered later.

        Raises:
            DuplicateKeyError: `alias` is a key, or an alias of another one, and `replace` is false.
        """
        self._load_builtin()
        if alias in self._entries:
            raise DuplicateKeyError(
                f"The {self.kind} {alias!r} is registered already, at {self._origins[alias]}; it cannot be an alias."
            )
        if self._aliases.get(alias, key) != key and not replace:
            raise DuplicateKeyError(f"{alias!r} already is an alias of the {self.kind} {self._aliases[alias]!r}.")
        self._aliases[alias] = key

    def _try_build(self, key: str, fields: Mapping[str, Any]) -> EntryT | None:
        """Return the entry of the fields; None if it still needs the function that `register` then decorates."""
        values = self._values(key, fields)
        required = {
            field.name
            for field in dataclasses.fields(cast("Any", self.entry_type))
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }
        waits = self._function_field is not None and self._function_field not in values
        if waits and not (values and required <= set(values)):
            return None
        try:
            return self._make(key, values)
        except UsageError as err:
            if waits and self._asks_for_function and not isinstance(err.__cause__, TypeError):
                return None
            raise

    @property
    def _asks_for_function(self) -> bool:
        """Return whether the function is required, that is, its field defaults to None."""
        fields = dataclasses.fields(cast("Any", self.entry_type))
        return any(field.name == self._function_field and field.default is None for field in fields)

    def _values(self, key: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        known = [field.name for field in dataclasses.fields(cast("Any", self.entry_type))]
        values = {self._field_aliases.get(name, name): value for name, value in fields.items()}
        for name in values:
            if name not in known:
                raise UsageError(
                    f"register_{self._slug}({key!r}): unknown field {name!r}.{_did_you_mean(name, known)}"
                    f" Fields: {', '.join(known)}."
                )
        return values

    def _make(self, key: str, values: Mapping[str, Any]) -> EntryT:
        try:
            return self.entry_type(**values)
        except TypeError as err:
            known = ", ".join(field.name for field in dataclasses.fields(cast("Any", self.entry_type)))
            raise UsageError(f"register_{self._slug}({key!r}): {err}. Fields: {known}.") from err

    def _add_function(
        self,
        key: str,
        function: Callable[..., Any],
        fields: Mapping[str, Any],
        *,
        origin: str,
        replace: bool,
        aliases: tuple[str, ...],
    ) -> None:
        if self._function_field is None:
            raise UsageError(f"register_{self._slug} takes an entry or its fields; it cannot be used as a decorator.")
        entry = self._make(key, self._values(key, {**fields, self._function_field: function}))
        self._add(key, entry, origin=origin, replace=replace, aliases=aliases)

    def _add(self, key: str, entry: EntryT, *, origin: str, replace: bool, aliases: tuple[str, ...]) -> None:
        self._load_builtin()
        if key in self._entries and not replace:
            raise DuplicateKeyError(
                f"The {self.kind} {key!r} is registered already, at {self._origins[key]}. "
                "Choose another key, or pass replace=True."
            )
        if key in self._aliases:
            raise DuplicateKeyError(f"{key!r} already is an alias of the {self.kind} {self._aliases[key]!r}.")
        self._entries[key] = entry
        self._origins[key] = origin
        for alias in aliases:
            self.alias(alias, key, replace=replace)

    def _remove_own(self, key: str, origin: str) -> None:
        if self._origins.get(key) == origin:
            del self._entries[key], self._origins[key]

    # Looking up

    def __getitem__(self, key: str) -> EntryT:
        self._load_builtin()
        key = self.canonical(key)
        if key not in self._entries:
            if key not in self._plugins:
                raise UnknownKeyError(self._unknown_message(key))
            self._load_plugin(self._plugins[key])
        return self._entries[key]

    def __setitem__(self, key: str, value: Any) -> None:
        raise ReadOnlyError(
            f"The registry is read-only: register_{self._slug}({key!r}, ...) adds an entry, with replace=True in the "
            "place of another. Entries are read by attribute; dict(entry) converts one to a dict."
        )

    def __delitem__(self, key: str) -> None:
        raise ReadOnlyError(
            f"The registry is read-only: register_{self._slug}({key!r}, ..., replace=True) replaces {key!r}."
        )

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self:  # Mapping's own get waits for a KeyError
            return default
        return self[key]

    def __contains__(self, key: object) -> bool:
        self._load_builtin()
        return isinstance(key, str) and self.canonical(key) in self._all_keys()

    def __iter__(self) -> Iterator[str]:
        self._load_builtin()
        return iter(self._all_keys())

    def __len__(self) -> int:
        self._load_builtin()
        return len(self._all_keys())

    def __repr__(self) -> str:
        return f"<Registry of {len(self)} {self.kind} entries>"

    def canonical(self, key: str) -> str:
        """Return the key of an alias; any other key unchanged."""
        self._load_builtin()
        return self._aliases.get(key, key)

    @property
    def aliases(self) -> Mapping[str, str]:
        self._load_builtin()
        return dict(self._aliases)

    def origin(self, key: str) -> str:
        """Return where an entry was registered, as `file:line`, or the plugin that provides it."""
        key = self.canonical(key)
        if key not in self._origins and key in self._plugins:
            return _plugin_origin(self._plugins[key])
        self[key]
        return self._origins[key]

    def nearest(self, key: str) -> list[str]:
        """Return up to three keys or aliases similar to `key`."""
        self._load_builtin()
        return difflib.get_close_matches(key.lower(), [*self._all_keys(), *self._aliases], n=3, cutoff=0.5)

    def _all_keys(self) -> list[str]:
        return list(dict.fromkeys([*self._entries, *self._plugins]))

    def _unknown_message(self, key: str) -> str:
        near = self.nearest(key)
        hint = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
        listing = f" Run `{self._list_command}` for all {len(self)}." if self._list_command else ""
        return f"Unknown {self.kind} {key!r}.{hint}{listing}"

    @property
    def _slug(self) -> str:
        return self.kind.replace(" ", "")

    # Sources of entries

    def _load_builtin(self) -> None:
        if self._builtin is not None:
            module, self._builtin = self._builtin, None
            try:
                importlib.import_module(module)
            except BaseException:
                self._builtin = module  # the next look-up must raise again, not find an empty registry
                raise

    @cached_property
    def _plugins(self) -> dict[str, EntryPoint]:
        chosen = os.environ.get(PLUGINS_VARIABLE)
        if self._group is None or chosen == "":
            return {}
        from importlib.metadata import entry_points

        found = {point.name: point for point in entry_points(group=self._group)}
        if chosen is None:
            return found
        names = {name.strip() for name in chosen.split(",")}
        return {key: point for key, point in found.items() if point.dist is not None and point.dist.name in names}

    @property
    def plugins(self) -> Mapping[str, EntryPoint]:
        return dict(self._plugins)

    def _load_plugin(self, point: EntryPoint) -> None:
        origin = _plugin_origin(point)
        try:
            found = point.load()
        except Exception as err:
            raise LlmtuneError(
                f"The plugin of the {self.kind} {point.name!r} ({origin}) cannot be loaded: {err!r}. "
                f"Fix or remove it, or set {PLUGINS_VARIABLE}='' to disable plugins."
            ) from err
        if point.name in self._entries:  # the plugin's module called register itself
            return
        if isinstance(found, self.entry_type):
            self._add(point.name, found, origin=origin, replace=False, aliases=())
        elif callable(found) and self._function_field is not None:
            self._add_function(point.name, found, {}, origin=origin, replace=False, aliases=())
        else:
            raise LlmtuneError(
                f"The plugin {origin} gives {type(found).__name__} for the {self.kind} {point.name!r}; "
                f"it must give {self.entry_type.__name__}."
            )


def resolve_reference(reference: str | Callable[..., Any], *, what: str) -> Callable[..., Any]:
    """Turn `"module:attribute"` into the function it names; a function stays what it is.

    Raises:
        LlmtuneError: The module or the attribute does not exist. A fault inside the module is not hidden.
    """
    if callable(reference):
        return reference
    module_name, _, attribute = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as err:
        if err.name is None or not f"{module_name}.".startswith(f"{err.name}."):
            raise
        raise LlmtuneError(f"{what} names the module {module_name!r}, which does not exist.") from err
    function = getattr(module, attribute, None)
    if not callable(function):
        raise LlmtuneError(f"{what} names {reference!r}, which is not a function.")
    return cast("Callable[..., Any]", function)


def _did_you_mean(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _plugin_origin(point: EntryPoint) -> str:
    dist = f"{point.dist.name} {point.dist.version}" if point.dist is not None else "unknown package"
    return f"plugin {dist} ({point.value})"


def _caller_location() -> str:
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
