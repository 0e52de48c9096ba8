"""The pages of the commands, English and Chinese, from the dataclasses that the parser reads."""

from __future__ import annotations

import csv
import dataclasses
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llmtune.arguments.parser import field_help, fields_by_owner, inner_type, shown_value
from llmtune.cli.main import COMMANDS, find_command

TRANSLATIONS = Path(__file__).parent / "zh/translations.csv"
ALWAYS = {
    "config": ("FILE", "YAML file of flags; flags on the command line override it."),
    "debug": ("", "Show the traceback of an error."),
    "help": ("", "Show the flags in the terminal."),
}
WORDS = {
    "en": {
        "head": ("Flag", "Value", "Default", "Meaning"),
        "text": "text",
        "int": "whole number",
        "float": "number",
        "bool": "`true` or `false`",
        "list": "one or several",
        "flags": "{count} flags. The same text is in `llmtune {command} --help`.",
        "always": "With every command",
        "other": "Chinese: [中文](../zh/commands/{command}.md).",
    },
    "zh": {
        "head": ("参数", "取值", "默认值", "含义"),
        "text": "文本",
        "int": "整数",
        "float": "数值",
        "bool": "`true` 或 `false`",
        "list": "可给多个",
        "flags": "共 {count} 个参数。英文原文见 `llmtune {command} --help`。",
        "always": "所有命令通用",
        "other": "English: [{command}](../../commands/{command}.md).",
    },
}


class Flag(NamedTuple):
    """`key`: what the table of translations calls its help."""

    name: str
    value: str
    default: str
    key: str
    help: str


def class_of(command: str) -> type:
    found: type = find_command(command).ARGUMENTS
    return found


def flags_by_group(command: str, lang: str = "en") -> Iterator[tuple[str, str, list[Flag]]]:
    """(key of the group, its title, its flags), in the order of `--help`."""
    cls = class_of(command)
    hints = typing.get_type_hints(cls)
    for owner, names in fields_by_owner(cls):
        place = f"{owner.__module__.removeprefix('llmtune.').removeprefix('arguments.')}.{owner.__name__}"
        helps = field_help(owner)
        flags = [
            Flag(name, _value(hints[name], lang), _default(cls, name), f"{place}.{name}", " ".join(helps[name].split()))
            for name in names
        ]
        yield place, (owner.__doc__ or "").strip().splitlines()[0].rstrip("."), flags


def texts() -> dict[str, str]:
    """All that is translated: key -> English."""
    found = {f"command.{name}": text for name, text in COMMANDS.items()}
    found |= {f"always.{name}": text for name, (_, text) in ALWAYS.items()}
    for command in COMMANDS:
        if has_flags(command):
            found[f"summary.{command}"] = "\n".join(_prose(summary(command)))
            for place, title, flags in flags_by_group(command):
                found[place] = title
                found |= {flag.key: flag.help for flag in flags}
    return found


def translations() -> dict[str, tuple[str, str]]:
    """Key -> (English that was translated, Chinese)."""
    with TRANSLATIONS.open(encoding="utf-8", newline="") as file:
        return {row["key"]: (row["english"], row["chinese"]) for row in csv.DictReader(file)}


def summary(command: str) -> str:
    return textwrap.dedent(find_command(command).SUMMARY).strip()


def pages() -> Iterator[tuple[str, str]]:
    """(path below docs/, text) of every page."""
    chinese = {key: text for key, (_, text) in translations().items()}
    for lang, folder, said in (("en", "commands", texts()), ("zh", "zh/commands", chinese)):
        for command in COMMANDS:
            make = _page if has_flags(command) else _other
            yield f"{folder}/{command}.md", make(command, lang, said)
        yield f"{folder}/index.md", _index(lang, said)


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(text: str) -> str:
    """Text for a table's cell: what stands outside of `code` must not be taken for HTML."""
    parts = re.split(r"(`[^`]*`)", text.replace("|", "\\|"))
    return "".join(part if part.startswith("`") else escape(part, quote=False).replace("*", "\\*") for part in parts)


def _page(command: str, lang: str, said: Mapping[str, str]) -> str:
    words = WORDS[lang]
    groups = list(flags_by_group(command, lang))
    count = sum(len(flags) for _, _, flags in groups)
    parts = [
        f"# llmtune {command}",
        said[f"command.{command}"],
        f"```text\n{_with_prose(summary(command), said[f'summary.{command}'])}\n```",
        f"{words['flags'].format(count=count, command=command)} {words['other'].format(command=command)}",
    ]
    for place, _, flags in groups:
        rows = ((f"`--{flag.name}`", flag.value, flag.default, cell(said[flag.key])) for flag in flags)
        parts += [f"## {said[place]}", table(words["head"], rows)]
    always = ((f"`--{name}`", value, "", cell(said[f"always.{name}"])) for name, (value, _) in ALWAYS.items())
    parts += [f"## {words['always']}", table(words["head"], always)]
    return "\n\n".join(parts) + "\n"


def has_flags(command: str) -> bool:
    """Whether a command has a class of arguments; the others take words, as `list models`."""
    return hasattr(find_command(command), "ARGUMENTS")


def _other(command: str, lang: str, said: Mapping[str, str]) -> str:
    module = find_command(command)
    lines = "\n".join(module.EXAMPLES)
    parts = [
        f"# llmtune {command}",
        said[f"command.{command}"],
        f"```text\n{module.USAGE}```",
        f"```bash\n{lines}\n```",
        WORDS[lang]["other"].format(command=command),
    ]
    return "\n\n".join(parts) + "\n"


def _index(lang: str, said: Mapping[str, str]) -> str:
    title, heads = {
        "en": ("Commands", ("Command", "Purpose")),
        "zh": ("命令与参数", ("命令", "用途")),
    }[lang]
    rows = ((f"[`llmtune {name}`]({name}.md)", cell(said[f"command.{name}"])) for name in COMMANDS)
    note = {
        "en": "Flags may be written with `-` or `_`, and as lines of a YAML file: `llmtune sft --config run.yaml`. A "
        "switch is on as `--packing` or `--packing true`, off as `--packing false` or `--no-packing`. A list takes "
        "`a b` or `a,b`. `--dry_run true` checks the flags and prints what would run.",
        "zh": "参数名中的 `_` 也可写作 `-`，也可以写进 YAML 文件：`llmtune sft --config run.yaml`，命令行优先。"
        "开关写作 `--packing` 或 `--packing true`，关闭写作 `--packing false` 或 `--no-packing`。"
        "列表写作 `a b` 或 `a,b`。`--dry_run true` 只检查参数并说明将要执行什么。",
    }[lang]
    return f"# {title}\n\n{note}\n\n{table(heads, rows)}\n"


def _value(hint: Any, lang: str) -> str:
    words = WORDS[lang]
    hint, is_list = inner_type(hint)
    if typing.get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(hint))
    name = words[{bool: "bool", int: "int", float: "float"}.get(hint, "text")]
    return f"{name}, {words['list']}" if is_list and lang == "en" else f"{name}，{words['list']}" if is_list else name


def _default(cls: type, name: str) -> str:
    field: dataclasses.Field[Any] = cls.__dataclass_fields__[name]  # type: ignore[attr-defined]
    factory = field.default_factory
    default = field.default if factory is dataclasses.MISSING else factory()
    return "" if default is None or default == [] else f"`{shown_value(default)}`"


def _prose(text: str) -> list[str]:
    """The lines that are sentences: commands are indented."""
    return [line for line in text.splitlines() if not line.startswith(" ")]


def _with_prose(text: str, prose: str) -> str:
    """The summary with its sentences put in another language: one translated line for each run of lines."""
    if prose == "\n".join(_prose(text)):
        return text
    blocks = iter(prose.split("\n"))
    found: list[str] = []
    for line in text.splitlines():
        if line.startswith(" "):
            found.append(line)
        elif not found or found[-1].startswith(" "):
            found.append(next(blocks))
    rest = list(blocks)
    assert not rest, f"translated sentences without a place: {rest}"
    return "\n".join(found)
