"""The translation of one file of another tool: what each key means here, and what cannot be said.

A key has a rule: the name of our flag that takes its value, `Harmless`, `Lacks`, or a function that calls the methods
of `Translation`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from llmtune.arguments.aliases import ALIASES, Tokens, translate
from llmtune.errors import UsageError

OFF = ("", "false", "none", "null", "no", "off", "0", "0.0", "{}", "[]")
"""Values that mean that a feature is not used."""


@dataclass(frozen=True, slots=True)
class Harmless:
    """A key that does not affect the result, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lacks:
    """A feature that llmtune does not have. Refused, unless the value says that it is not used.

    Attributes:
        feature: What it is. advice: What to do instead. off: More values that mean that it is not used.
        with_key: The key that turns the feature on; without it, this one has no effect.
    """

    feature: str
    advice: str = ""
    off: tuple[str, ...] = ()
    with_key: str = ""


Rule: TypeAlias = "str | Harmless | Lacks | Callable[[Translation, str, Any], None]"


@dataclass(frozen=True, slots=True)
class Line:
    """One of our flags. `theirs`: the key that it comes from; "" for a default of the other tool."""

    flag: str
    values: tuple[str, ...]
    theirs: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A key that cannot be said here. `flags`: our flags that would replace it, if they are given."""

    theirs: str
    reason: str
    flags: tuple[str, ...] = ()


@dataclass
class Translation:
    """A file of another tool in our flags.

    Attributes:
        content: Its keys and values, as read. stage: Our stage. harmless: (key, reason) of keys without effect here.
    """

    tool: str
    content: Mapping[str, Any]
    stage: str = "sft"
    lines: list[Line] = field(default_factory=list)
    harmless: list[tuple[str, str]] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    meant_for: str = ""

    def set(self, flag: str, *values: object, theirs: str = "", note: str = "") -> None:
        """Give a value to a flag of ours; a later one replaces it, but for lists of several lines."""
        words = tuple(text_of(value) for value in values)
        if flag == "train_args":
            self.lines.append(Line(flag, words, theirs, note))
            return
        kept = [line for line in self.lines if line.flag != flag]
        self.lines = [*kept, Line(flag, words, theirs, note)]

    def default(self, flag: str, *values: object) -> None:
        """Give a flag the other tool's default, where the file says nothing and ours differs."""
        if not self.has(flag):
            self.set(flag, *values)

    def has(self, flag: str) -> bool:
        return any(line.flag == flag for line in self.lines)

    def without_effect(self, key: str, reason: str) -> None:
        self.harmless.append((key, reason))

    def refuse(self, key: str, reason: str, *flags: str) -> None:
        self.refusals.append(Refusal(shown_key(key, self.content.get(key)), reason, flags))

    def apply(self, rules: Mapping[str, Rule], known: Collection[str], *, skip: Collection[str] = ()) -> None:
        """Translate every key. `known`: our flags. `skip`: keys that the tool's module reads itself."""
        for key, value in self.content.items():
            if value is None or key in skip:
                continue
            rule = rules.get(key)
            if rule is None:
                self._by_alias(key, value, rules, known)
            elif isinstance(rule, str):
                self.set(rule, *as_list(value), theirs=key)
            elif isinstance(rule, Harmless):
                self.without_effect(key, rule.reason)
            elif isinstance(rule, Lacks):
                self._lacks(key, value, rule)
            else:
                try:
                    rule(self, key, value)
                except ValueError as err:
                    self.refuse(key, str(err))

    def _lacks(self, key: str, value: Any, rule: Lacks) -> None:
        off = is_off(value) or text_of(value).lower() in rule.off
        if off or (rule.with_key and is_off(self.content.get(rule.with_key))):
            self.without_effect(key, "not used")
            return
        if rule.with_key and rule.with_key in self.content:
            return  # refused once, at the key that turns it on
        advice = f" {rule.advice}" if rule.advice else ""
        self.refuse(key, f"llmtune has no {rule.feature}.{advice}")

    def _by_alias(self, key: str, value: Any, rules: Mapping[str, Rule], known: Collection[str]) -> None:
        """A key that flags of ours, or the spellings of other tools that we take, already have."""
        alias = ALIASES.get(key)
        if alias is None and key not in known:
            near = difflib.get_close_matches(key, sorted({*rules, *known, *ALIASES}), n=3, cutoff=0.7)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            if is_off(value):
                self.without_effect(key, "not used")
            else:
                self.refuse(key, f"unknown key.{hint}")
            return
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value)):
            self.refuse(key, "it nests mappings or lists, which its flag does not take.")
            return
        values = [text_of(one) for one in as_list(value)]
        if alias is None:
            self.set(key, *values, theirs=key)
            return
        if alias.ignored:
            self.without_effect(key, alias.ignored)
            return
        try:
            tokens, _ = translate(key, values)
        except UsageError as err:
            self.refuse(key, str(err).removeprefix(f"--{key} {' '.join(values)}: ").rstrip(".") + ".")
            return
        if not tokens:
            self.without_effect(key, "the default")
        for flag, given in tokens:
            self.set(flag, *given, theirs=key)

    def tokens(self) -> Tokens:
        return [(line.flag, list(line.values)) for line in self.lines]

    def standing(self, given: Collection[str]) -> list[Refusal]:
        """The refusals that no flag given on the command line replaces."""
        return [one for one in self.refusals if not set(one.flags).intersection(given)]


# Values as the loader of YAML gives them: text, lists, mappings


def text_of(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).strip() if not isinstance(value, (dict, list)) else str(value)


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def is_off(value: Any) -> bool:
    """Whether a value says that a feature is not used."""
    return value is None or text_of(value).lower() in OFF


def is_on(value: Any) -> bool:
    """Whether a value is a plain yes.

    Raises:
        ValueError: It is neither yes nor no.
    """
    if text_of(value).lower() in ("true", "yes", "on", "1"):
        return True
    if is_off(value):
        return False
    raise ValueError(f"expected true or false, not {text_of(value)!r}.")


def shown_key(key: str, value: Any) -> str:
    text = ", ".join(map(text_of, value)) if isinstance(value, list) else text_of(value)
    return f"{key}: {text if len(text) <= 60 else text[:57] + '...'}" if value is not None else key
