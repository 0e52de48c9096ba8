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
    OF_CHECKPOINTS,
    Tokens,
    add_lengths,
    join_dataset_names,
    join_loss_weights,
    translate,
    unknown_flag_hint,
)
from llmtune.arguments.aliases_online import JOINED, join_online
from llmtune.arguments.checks import is_name_pattern
from llmtune.arguments.elsewhere.given import from_file, is_config_word
from llmtune.arguments.secrets import SECRETS, hidden_secret
from llmtune.errors import UsageError
from llmtune.utils.logging import get_logger, log_once

ArgumentsT = TypeVar("ArgumentsT")
DASHES = ("\u2010", "\u2011", "\u2012", "\u2013", "\u2014", "\u2015", "\u2212", "\ufe58", "\uff0d")
"""Characters that word processors and web pages use for hyphens."""
OF_TRAINING = ("sft", "check", "plan", "launch")
NEVER_EMPTY = ("dataset", "val_dataset")


def parse(cls: type[ArgumentsT], argv: Sequence[str], *, command: str, summary: str = "") -> ArgumentsT:
    """Make an arguments object from a command line.

    Raises:
        UsageError: An unknown flag (with the nearest one), a value of the wrong type, or what `cls` refuses.
        SystemExit: After `--help`.
    """
    if any(token in ("-h", "--help") for token in argv):
        build_parser(cls, command=command, summary=summary).print_help()
        raise SystemExit(0)
    parser = build_parser(cls, command=command, with_help=False)
    synonyms = getattr(cls, "SYNONYMS", {})
    known = {field.name for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    given = [(synonyms.get(flag, flag), values) for flag, values in _split(_with_config(argv))]
    for flag, values in given:
        if flag in NEVER_EMPTY and not values:
            raise UsageError(f"--{flag} is empty.")
    given += [(flag, [value]) for flag in SECRETS if flag in known and (value := hidden_secret(flag)) is not None]
    files = [from_file(Path(path), cls, known, given) for path in _config_files(given)]
    from_files: Tokens = [(synonyms.get(flag, flag), values) for file in files for flag, values in file.tokens]
    places = {synonyms.get(flag, flag): f" in {file.path}" for file in files for flag, _ in file.tokens}
    problems = [line for file in files for line in file.problems]
    tokens = _translate([*from_files, *((flag, values) for flag, values in given if flag != "config")], known, problems)
    merged, unknown = _merge(tokens, cls, known, command, places)
    problems += unknown
    found: dict[str, Any] = {}
    for flag, values in merged.items():  # one by one: argparse stops at its first problem
        try:
            found |= vars(parser.parse_args(_flatten({flag: values})))
        except UsageError as err:
            problems.append(str(err))
    if problems:
        raise UsageError("\n".join(dict.fromkeys(problems)))
    return cls(**found)


def _merge(
    tokens: Tokens, cls: type, known: set[str], command: str, places: dict[str, str]
) -> tuple[dict[str, list[str]], list[str]]:
    """The values of each flag, a later one over an earlier, and what is wrong with the flags, all of it."""
    hints = typing.get_type_hints(cls)
    ignore = any(flag == "ignore_args_error" and (not values or _boolean(values[0])) for flag, values in tokens)
    merged: dict[str, list[str]] = {}
    problems: dict[str, None] = {}
    for flag, values in tokens:
        if flag not in known:
            gone = getattr(cls, "GONE", {}).get(flag)
            place = places.get(flag, "")
            message = f"--{flag}{place} is gone: {gone}" if gone else _unknown_flag(flag, known, command, place)
            if ignore:
                get_logger().warning(message)
            else:
                problems[message] = None
        elif len(values) > 1 and not inner_type(hints[flag])[1]:
            problems[
                f"--{flag} takes one value, not {len(values)}: {' '.join(values)}. Quote text that contains spaces."
            ] = None
        elif flag == "train_args":
            merged.setdefault(flag, []).extend(values)
        else:
            merged[flag] = values
    return merged, list(problems)


def build_parser(cls: type, *, command: str, summary: str = "", with_help: bool = True) -> argparse.ArgumentParser:
    """Make the parser of a class of arguments; its help is read from the sources, which takes longer than all else."""
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
        helps = field_help(owner) if with_help else {}
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


def _translate(tokens: Tokens, known: set[str], problems: list[str]) -> Tokens:
    """Translate other tools' flags, with one log line. A flag of the command itself is no alias: serve's --adapters.

    Args:
        problems: Gets a line for each value without a meaning here.
    """
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
        try:
            ours, note = ([(flag, values)], "") if own else translate(flag, values)
        except UsageError as err:
            problems.append(str(err))
            continue
        if note and ours != [(flag, values)]:
            notes[bool(ALIASES[flag].ignored)].append(note)
        tokens_of = [
            token for our, given in ours for token in (translate(our, given)[0] if our != flag else [(our, given)])
        ]
        for our, given in tokens_of:
            if our == "rewards":
                rewards[flag] = given
        found += [(_as_known(our, known), given) for our, given in tokens_of if our != "rewards"]
    if rewards:  # functions and a reward model have flags of their own elsewhere, and both count
        found.append(("rewards", [value for given in rewards.values() for value in given]))
    for ignored, title in ((False, "Translated flags"), (True, "Ignored flags")):
        if notes[ignored]:
            log_once(f"{title}: {', '.join(dict.fromkeys(notes[ignored]))}.", level=20)
    return join_online(found) if online else join_loss_weights(found)


def _as_known(flag: str, known: set[str]) -> str:
    """`--adapter_name_or_path` is --peft_path in training, and --ckpt_dir afterwards."""
    other = OF_CHECKPOINTS.get(flag, flag)
    return other if flag not in known and other in known else flag


def _with_config(argv: Sequence[str]) -> list[str]:
    """`llmtune sft run.yaml --seed 1`: files of flags before the first flag are those of --config."""
    words = list(argv)
    for count, word in enumerate(words):
        if not is_config_word(word):
            return [part for one in words[:count] for part in ("--config", one)] + words[count:]
    return [part for one in words for part in ("--config", one)]


def _config_files(given: Tokens) -> list[str]:
    found: list[str] = []
    for flag, values in given:
        if flag == "config" and not any(values):
            raise UsageError("--config needs the path of a YAML file.")
        found += values if flag == "config" else []
    return found


def _unknown_flag(flag: str, known: set[str], command: str, place: str) -> str:
    if command in OF_TRAINING and (hint := unknown_flag_hint(flag)):
        return f"Unknown flag --{flag}{place}: {hint}"
    near = difflib.get_close_matches(flag, sorted(known | set(ALIASES)), n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join('--' + name for name in near)}?" if near else ""
    return f"Unknown flag --{flag}{place}.{hint} See `llmtune {command} --help`."
