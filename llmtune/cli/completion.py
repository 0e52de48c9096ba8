"""`llmtune completion bash|zsh|fish`: a script that completes commands, flags and values. It starts no Python."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llmtune.cli.words import refuse_flags
from llmtune.errors import UsageError

USAGE = "usage: llmtune completion bash|zsh|fish\n"
EXAMPLES = (
    "llmtune completion bash > ~/.local/share/bash-completion/completions/llmtune",
    "llmtune completion zsh > ~/.zfunc/_llmtune    # a folder of $fpath",
    "llmtune completion fish > ~/.config/fish/completions/llmtune.fish",
)


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag of a command. `values`: what it takes; empty where it takes a path or any text."""

    name: str
    help: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Words:
    """The words that may follow a command. `plain`: words without dashes, `flags`: its flags."""

    command: str
    help: str
    plain: tuple[str, ...]
    flags: tuple[Flag, ...]


def run(argv: Sequence[str]) -> int:
    if argv and argv[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0
    refuse_flags(argv, USAGE)
    if len(argv) != 1 or argv[0] not in SHELLS:
        raise UsageError(f"Say which shell: {', '.join(SHELLS)}. {USAGE.strip()}")
    sys.stdout.write(SHELLS[argv[0]](list(all_words())))
    return 0


def all_words() -> Iterator[Words]:
    """The words of every command, ours and those that other tools call by another name."""
    from llmtune.arguments.stages import LOSSES, STAGES
    from llmtune.cli.list import REGISTRIES
    from llmtune.cli.main import COMMANDS, find_command
    from llmtune.cli.neighbours import NEIGHBOURS

    plain = {
        "list": (*REGISTRIES, "plugins"),
        "show": tuple(registry.kind.replace(" ", "_") for registry in REGISTRIES.values()),
        "schema": tuple(STAGES),
        "completion": tuple(SHELLS),
        **dict.fromkeys(("check", "plan"), tuple(STAGES)),
    }
    found: dict[str, Words] = {}
    for name, text in COMMANDS.items():
        cls = getattr(find_command(name), "ARGUMENTS", None)
        flags = () if cls is None else tuple(_flags(cls))
        if name in ("list", "show"):
            flags = (Flag("--json", "Print JSON.", ("true", "false")),)
        found[name] = Words(name, text, plain.get(name, ()), flags)
        yield found[name]
    for name, neighbour in NEIGHBOURS.items():
        target = found.get(neighbour.command, found["sft"])
        yield Words(name, f"llmtune {neighbour.command}.", target.plain, target.flags)
    for name in (*LOSSES, "train", "rlhf"):
        stage = found[LOSSES.get(name, "sft")]
        yield Words(name, stage.help, (), stage.flags)


def _flags(cls: type) -> Iterator[Flag]:
    """The flags of a command, with choices, switches and keys of registries as values."""
    from llmtune.arguments.parser import build_parser

    for action in build_parser(cls, command="")._actions:
        name = next((text for text in action.option_strings if text.startswith("--")), "")
        if not name:
            continue
        if action.choices:
            values = tuple(map(str, action.choices))
        elif action.metavar == "true|false":
            values = ("true", "false")
        else:
            values = tuple(_keys(name))
        yield Flag(name, " ".join((action.help or "").replace("%%", "%").split()), values)


def _keys(flag: str) -> Sequence[str]:
    from llmtune.cli.list import REGISTRIES

    registry = {
        "--model_type": "models",
        "--template_type": "templates",
        "--tool_format": "tool_formats",
        "--dataset": "datasets",
        "--val_dataset": "datasets",
        "--loss": "losses",
        "--rewards": "rewards",
        "--metrics": "metrics",
        "--advantage": "advantages",
        "--tool_functions": "tools",
    }.get(flag)
    return [] if registry is None else list(REGISTRIES[registry])


def _values(words: Sequence[Words]) -> dict[tuple[str, ...], list[str]]:
    """Values -> the `command --flag` that take them: many share theirs."""
    found: dict[tuple[str, ...], list[str]] = {}
    for one in words:
        for flag in one.flags:
            if flag.values:
                found.setdefault(flag.values, []).append(f"{one.command} {flag.name}")
    return found


def _bash(words: Sequence[Words]) -> str:
    lines = [
        "# bash completion of llmtune",
        "_llmtune() {",
        '  local word="${COMP_WORDS[COMP_CWORD]}" command="${COMP_WORDS[1]}" place flag="" found=""',
        "  COMPREPLY=()",
        '  if [ "$COMP_CWORD" -eq 1 ]; then',
        f"    found={_quoted(' '.join(one.command for one in words))}",
        "  else",
        "    for ((place = COMP_CWORD - 1; place > 1; place--)); do",
        '      case "${COMP_WORDS[place]}" in --*) flag="${COMP_WORDS[place]}"; break ;; esac',
        "    done",
        '    case "$word" in',
        '      -*) case "$command" in',
        *(
            f"        {one.command}) found={_quoted(' '.join(flag.name for flag in one.flags))} ;;"
            for one in words
            if one.flags
        ),
        "      esac ;;",
        '      *) if [ -n "$flag" ]; then case "$command $flag" in',
        *(
            f"        {'|'.join(map(_quoted, places))}) found={_quoted(' '.join(values))} ;;"
            for values, places in _values(words).items()
        ),
        "      esac",
        '      elif [ "$COMP_CWORD" -eq 2 ]; then case "$command" in',
        *(f"        {one.command}) found={_quoted(' '.join(one.plain))} ;;" for one in words if one.plain),
        "      esac; fi ;;",
        "    esac",
        "  fi",
        '  [ -n "$found" ] && COMPREPLY=($(compgen -W "$found" -- "$word"))',
        "}",
        "complete -o bashdefault -o default -F _llmtune llmtune",
    ]
    return "\n".join(lines) + "\n"


def _zsh(words: Sequence[Words]) -> str:
    lines = [
        "#compdef llmtune",
        "_llmtune() {",
        "  local -a found",
        '  local place flag=""',
        "  if (( CURRENT == 2 )); then",
        f"    found=({' '.join(_quoted(f'{one.command}:{one.help}') for one in words)})",
        "    _describe command found; return",
        "  fi",
        "  for ((place = CURRENT - 1; place > 2; place--)); do",
        "    [[ ${words[place]} == --* ]] && { flag=${words[place]}; break }",
        "  done",
        "  if [[ $PREFIX == -* ]]; then",
        *(
            f'    [[ {_quoted(_padded(commands))} == *" ${{words[2]}} "* ]] && '
            f"found+=({_quoted(f'{flag.name}:{_first(flag.help)}')})"
            for flag, commands in _commands_of(words).items()
        ),
        "    (( $#found )) && _describe flag found",
        "    return",
        "  fi",
        '  case "${words[2]} $flag" in',
        *(
            f"    {'|'.join(_quoted(place) for place in places)}) found=({' '.join(map(_quoted, values))}) ;;"
            for values, places in _values(words).items()
        ),
        *(f"    {_quoted(one.command + ' ')}) found=({' '.join(one.plain)}) ;;" for one in words if one.plain),
        "  esac",
        "  if (( $#found )); then compadd -a found; else _files; fi",
        "}",
        'if [ "${funcstack[1]}" = "_llmtune" ]; then _llmtune "$@"; else compdef _llmtune llmtune; fi',
    ]
    return "\n".join(lines) + "\n"


def _fish(words: Sequence[Words]) -> str:
    lines = ["# fish completion of llmtune"]
    for one in words:
        lines.append(f"complete -c llmtune -n __fish_use_subcommand -f -a {one.command} -d {_quoted(one.help)}")
        if one.plain:
            lines.append(f"complete -c llmtune -n {_seen([one.command])} -f -a {_quoted(' '.join(one.plain))}")
    for flag, commands in _commands_of(words).items():
        values = f" -x -a {_quoted(' '.join(flag.values))}" if flag.values else " -r"
        text = f"-l {flag.name[2:]} -d {_quoted(_first(flag.help))}{values}"
        lines.append(f"complete -c llmtune -n {_seen(commands)} {text}")
    return "\n".join(lines) + "\n"


def _padded(commands: Sequence[str]) -> str:
    """The names with blanks around each, to look for one of them."""
    return f" {' '.join(commands)} "


def _seen(commands: Sequence[str]) -> str:
    return _quoted(f"__fish_seen_subcommand_from {' '.join(commands)}")


def _commands_of(words: Sequence[Words]) -> dict[Flag, list[str]]:
    """Flag -> the commands that have it: stages share most of theirs."""
    found: dict[Flag, list[str]] = {}
    for one in words:
        for flag in one.flags:
            found.setdefault(flag, []).append(one.command)
    return found


def _first(text: str) -> str:
    """The first sentence of a help, which fish shows in one line."""
    return text.partition(". ")[0].rstrip(".")


def _quoted(text: str) -> str:
    """Quote for a shell, by single quotes, whatever the text holds."""
    return "'" + text.replace("'", "'\\''") + "'"


SHELLS: dict[str, Callable[[Sequence[Words]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
