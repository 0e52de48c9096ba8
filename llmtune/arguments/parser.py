"""Flags from a dataclass: types, choices and help come from its fields; a YAML file takes the same way as flags.

Precedence: defaults < --config file < flags.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import functools
import inspect
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union

from llmtune.arguments.aliases import (
    ALIASES,
    Tokens,
    add_lengths,
    join_dataset_names,
    join_loss_weights,
    translate,
    unknown_flag_hint,
)
from llmtune.arguments.aliases_online import JOINED, join_online
from llmtune.arguments.checks import is_name_pattern
from llmtune.arguments.secrets import SECRETS, hidden_secret
from llmtune.errors import UsageError, one_line
from llmtune.utils.logging import get_logger, log_once

ArgumentsT = TypeVar("ArgumentsT")
DASHES = ("\u2010", "\u2011", "\u2012", "\u2013", "\u2014", "\u2015", "\u2212", "\ufe58", "\uff0d")
"""Characters that word processors and web pages use for hyphens."""
OF_TRAINING = ("sft", "check", "plan", "launch")
MAX_CONFIG_BYTES = 1_000_000
NEVER_EMPTY = ("dataset", "val_dataset")


def parse(cls: type[ArgumentsT], argv: Sequence[str], *, command: str, summary: str = "") -> ArgumentsT:
    """Make an arguments object from a command line.

    Raises:
        UsageError: An unknown flag (with the nearest one), a value of the wrong type, or what `cls` refuses.
        SystemExit: After `--help`.
    """
    parser = build_parser(cls, command=command, summary=summary)
    if any(token in ("-h", "--help") for token in argv):
        parser.print_help()
        raise SystemExit(0)
    synonyms = getattr(cls, "SYNONYMS", {})
    given = [(synonyms.get(flag, flag), values) for flag, values in _split(argv)]
    for flag, values in given:
        if flag in NEVER_EMPTY and not values:
            raise UsageError(f"--{flag} is empty.")
    from_files: Tokens = []
    places: dict[str, str] = {}
    for path in _config_files(given):
        tokens = [(synonyms.get(flag, flag), values) for flag, values in _read_config(Path(path))]
        from_files += tokens
        places |= {flag: f" in {path}" for flag, _ in tokens}
    merged: dict[str, list[str]] = {}
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    given += [(flag, [value]) for flag in SECRETS if flag in known and (value := hidden_secret(flag)) is not None]
    tokens = _translate([*from_files, *((flag, values) for flag, values in given if flag != "config")], known)
    ignore = any(flag == "ignore_args_error" and (not values or _boolean(values[0])) for flag, values in tokens)
    for flag, values in tokens:
        if flag not in known:
            message = _unknown_flag(flag, known, command, places.get(flag, ""))
            if not ignore:
                raise UsageError(message)
            get_logger().warning(message)
        elif len(values) > 1 and not inner_type(hints[flag])[1]:
            raise UsageError(
                f"--{flag} takes one value, not {len(values)}: {' '.join(values)}. Quote text that contains spaces."
            )
        elif flag == "train_args":
            merged.setdefault(flag, []).extend(values)
        else:
            merged[flag] = values
    return cls(**vars(parser.parse_args(_flatten(merged))))


def build_parser(cls: type, *, command: str, summary: str = "") -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"llmtune {command}",
        description=textwrap.dedent(summary).strip(),
        formatter_class=_Formatter,
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
        usage=f"llmtune {command} [--config FILE.yaml] [--flag value ...]",
    )
    parser.add_argument("-h", "--help", action="help", help="Show this help.")
    parser.add_argument("--config", metavar="FILE", help="YAML file of flags; flags on the command line override it.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    hints = typing.get_type_hints(cls)
    for owner, names in fields_by_owner(cls):
        group = parser.add_argument_group((owner.__doc__ or owner.__name__).strip().splitlines()[0].rstrip("."))
        helps = field_help(owner)
        for name in names:
            field = cls.__dataclass_fields__[name]  # type: ignore[attr-defined]
            group.add_argument(f"--{name}", **_argument(hints[name], field, helps.get(name, "")))
    return parser


@functools.cache
def _classes_of(module: str) -> dict[str, ast.ClassDef]:
    """Classes of a module by name; inspect.getsource would parse the whole file anew for each."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


@functools.cache
def field_help(cls: type) -> dict[str, str]:
    """Help of each field of a class: the text below it."""
    tree = _classes_of(cls.__module__)[cls.__qualname__]
    found: dict[str, str] = {}
    for statement, follower in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = follower.value if isinstance(follower, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                found[statement.target.id] = inspect.cleandoc(text.value)
    return found


def _flatten(given: dict[str, list[str]]) -> list[str]:
    """Back to a command line. Each value is tied to its flag, so that it may begin with a dash."""
    return [
        token
        for flag, values in given.items()
        for token in ([f"--{flag}={value}" for value in values] or [f"--{flag}"])
    ]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        flag, _, problem = message.removeprefix("argument ").partition(": ")
        raise UsageError(f"{flag}: {problem}." if problem else f"{message}.")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=min(shutil.get_terminal_size((110, 24)).columns, 120))


def fields_by_owner(cls: type) -> list[tuple[type, list[str]]]:
    """Each class with the fields that it documents; shared classes first."""
    owners: dict[type, list[str]] = {owner: [] for owner in reversed(cls.__mro__) if dataclasses.is_dataclass(owner)}
    for field in dataclasses.fields(cls):
        if field.init:
            owner = next(base for base in cls.__mro__ if field.name in vars(base).get("__annotations__", {}))
            owners[owner].append(field.name)
    return [(owner, names) for owner, names in owners.items() if names]


def _argument(hint: Any, field: dataclasses.Field[Any], text: str) -> dict[str, Any]:
    factory = field.default_factory
    default = field.default if factory is dataclasses.MISSING else factory()
    shown = "" if default is None or default == [] else f" [{shown_value(default)}]"
    options: dict[str, Any] = {"help": (text + shown).replace("%", "%%")}
    hint, is_list = inner_type(hint)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        options |= {"choices": choices, "type": type(choices[0]), "metavar": "{" + ",".join(map(str, choices)) + "}"}
    elif hint is bool:
        options |= {"type": _boolean, "nargs": "?", "const": True, "metavar": "true|false"}
    else:
        options |= {"type": hint, "metavar": {int: "N", float: "X"}.get(hint, "TEXT")}
    if is_list:
        options["nargs"] = "*"
        options["type"] = str
        options["action"] = _CommaList
    return options


class _CommaList(argparse.Action):
    """`--dataset a b` and `--dataset a,b`; a comma inside the path of an existing file stays."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        parts = [part for value in values for part in ([value] if self._is_one(value) else value.split(","))]
        former = getattr(namespace, self.dest, [])
        found = [part for part in parts if part]
        if values and not found and self.dest in NEVER_EMPTY:
            found = [""]  # refused where data is checked: an empty variable would train on the default
        setattr(namespace, self.dest, [*former, *found])

    def _is_one(self, value: str) -> bool:
        """Whether a comma is part of the value: of a setting, a regular expression, or the path of a file."""
        is_call = self.dest == "rewards" and "(" in value
        if self.dest == "train_args" or is_call or (self.dest == "lora_target_modules" and is_name_pattern(value)):
            return True
        try:
            return Path(value).exists()
        except (OSError, ValueError):  # too long for a path
            return False


def inner_type(hint: Any) -> tuple[Any, bool]:
    """The type inside `X | None` or `list[X]`."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0], True
    return hint, False


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, not {text!r}")


def shown_value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _split(argv: Sequence[str]) -> Tokens:
    """`--a 1 2 --b=3 --no-c` to flags with their values."""
    tokens: Tokens = []
    for text in argv:
        if text.startswith("--") and len(text) > 2:
            name, equals, value = text[2:].partition("=")
            tokens.append((name.replace("-", "_"), [value] if equals else []))
        elif text[:1] in DASHES and text.lstrip("".join(DASHES))[:1].isalpha():
            flag = text.lstrip("".join(DASHES))
            raise UsageError(f"Unexpected {text!r}: its dash is a word processor's, not a hyphen. Type --{flag}.")
        elif not tokens:
            raise UsageError(f"Unexpected {text!r}: flags begin with --.")
        else:
            tokens[-1][1].append(text)
    return [token for token in tokens if token[0] != "debug"]


def _translate(tokens: Tokens, known: set[str]) -> Tokens:
    """Translate other tools' flags, with one log line. A flag of the command itself is no alias: serve's --adapters."""
    found: Tokens = []
    notes: dict[bool, list[str]] = {True: [], False: []}
    rewards: dict[str, list[str]] = {}
    online = "num_generations" in known
    own_joins = JOINED if online else ()
    for flag, values in join_dataset_names(add_lengths(tokens, online=online)):
        if flag in own_joins:
            found.append((flag, values))
            continue
        if flag.startswith("no_") and not values and flag not in ALIASES and not flag.startswith("no_repeat"):
            flag, values = flag[3:], ["false"]
        own = flag in known and flag in ALIASES and bool(ALIASES[flag].target)
        ours, note = ([(flag, values)], "") if own else translate(flag, values)
        if note and ours != [(flag, values)]:
            notes[bool(ALIASES[flag].ignored)].append(note)
        tokens_of = [
            token for our, given in ours for token in (translate(our, given)[0] if our != flag else [(our, given)])
        ]
        for our, given in tokens_of:
            if our == "rewards":
                rewards[flag] = given
        found += [token for token in tokens_of if token[0] != "rewards"]
    if rewards:  # functions and a reward model have flags of their own elsewhere, and both count
        found.append(("rewards", [value for given in rewards.values() for value in given]))
    for ignored, title in ((False, "Translated flags"), (True, "Ignored flags")):
        if notes[ignored]:
            log_once(f"{title}: {', '.join(dict.fromkeys(notes[ignored]))}.", level=20)
    return join_online(found) if online else join_loss_weights(found)


def _config_files(given: Tokens) -> list[str]:
    found: list[str] = []
    for flag, values in given:
        if flag == "config" and not any(values):
            raise UsageError("--config needs the path of a YAML file.")
        found += values if flag == "config" else []
    return found


def _read_config(path: Path) -> Tokens:
    """A YAML (or JSON) file as flags, so that it takes the same converters. Keys that begin with _ are comments."""
    import yaml

    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"--config {path} is not a file.")
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UsageError(
                f"--config {path} is too large: {path.stat().st_size:,} bytes, at most {MAX_CONFIG_BYTES:,}."
            )
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_plain_loader())
    except OSError as err:
        raise UsageError(f"--config {path}: {err.strerror}.") from err
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as err:
        raise UsageError(f"--config {path} is not YAML: {one_line(err)}") from err
    if not isinstance(content, dict):
        raise UsageError(f"--config {path} must hold one flag per line, as `name: value`.")
    return [
        (str(key).replace("-", "_"), _config_values(value, f"--config {path}: {str(key)[:60]}"))
        for key, value in content.items()
        if value is not None and not str(key).startswith("_")
    ]


def _plain_loader() -> Any:
    """YAML whose plain words stay text but for null: `no` may be a choice, and 1e-5 is a number to us, not to YAML."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag.endswith((":null", ":merge"))]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader


def _config_values(value: object, where: str) -> list[str]:
    """A flag's values. Nothing is nested deeper, so that a file of a few lines cannot stand for gigabytes of text."""
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    if any(isinstance(item, (dict, list)) for item in items):
        raise UsageError(f"{where} nests lists or mappings; a flag takes values, or name: value pairs.")
    if isinstance(value, dict):
        return [f"{key}={shown_value(item)}" for key, item in value.items()]
    return [shown_value(item) for item in items]


def _unknown_flag(flag: str, known: set[str], command: str, place: str) -> str:
    if command in OF_TRAINING and (hint := unknown_flag_hint(flag)):
        return f"Unknown flag --{flag}{place}: {hint}"
    near = difflib.get_close_matches(flag, sorted(known | set(ALIASES)), n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join('--' + name for name in near)}?" if near else ""
    return f"Unknown flag --{flag}{place}.{hint} See `llmtune {command} --help`."
