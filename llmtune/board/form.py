"""The arguments of a stage as a form: fields from the dataclass, values as one would type them.

A form is a dictionary from flag to text, or to a list of texts; what is not in it has its default. It becomes a command
line, a YAML file and arguments, which are the same three spellings as everywhere.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmtune.arguments.aliases import translate
from llmtune.arguments.elsewhere.converted import converted
from llmtune.arguments.parser import field_help, fields_by_owner, inner_type, shown_value
from llmtune.arguments.secrets import SECRETS
from llmtune.arguments.stages import STAGES, stage_arguments
from llmtune.board.security import leads_out
from llmtune.distributed.deepspeed import packaged_configs
from llmtune.errors import UsageError

Kind = Literal["flag", "choice", "number", "text"]
Values = dict[str, "str | list[str]"]
FIRST = (
    *("sft_type", "learning_rate", "num_train_epochs", "max_steps"),
    *("batch_size", "gradient_accumulation_steps", "max_length", "lora_rank"),
)
"""The eight fields that most runs set, beside model and data."""
OWN = ("model_type", "model_id_or_path", "dataset", "val_dataset", "run_name")
"""Fields with a place of their own on the page."""
RUNS_CODE = ("trust_remote_code", "custom_register_path", "allow_pickle", "use_kernels")
CODE_FILES = ("rewards", "tool_functions")


@dataclass(frozen=True)
class FormField:
    """A flag on the page. `default`: as shown, "" without one. `runs_code`: its value can make a run execute code."""

    name: str
    group: str
    help: str
    kind: Kind
    choices: tuple[str, ...]
    default: str
    is_list: bool
    runs_code: bool


@functools.cache
def form_fields(stage: str) -> tuple[FormField, ...]:
    """Return the fields of a stage in the order of `--help`; secrets have none."""
    cls = stage_arguments(stage)
    hints = typing.get_type_hints(cls)
    found = []
    for owner, names in fields_by_owner(cls):
        group = (owner.__doc__ or owner.__name__).strip().splitlines()[0].rstrip(".")
        helps = field_help(owner)
        found += [_field(name, group, hints[name], cls, helps) for name in names if name not in SECRETS]
    return tuple(found)


def _field(name: str, group: str, hint: Any, cls: type, helps: Mapping[str, str]) -> FormField:
    field = cls.__dataclass_fields__[name]  # type: ignore[attr-defined]
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    inner, is_list = inner_type(hint)
    choices = tuple(map(str, typing.get_args(inner))) if typing.get_origin(inner) is Literal else ()
    kind: Kind = "choice" if choices else "flag" if inner is bool else "number" if inner in (int, float) else "text"
    shown = "" if default is None or default == [] else shown_value(default)
    code = name in RUNS_CODE or name in CODE_FILES or name == "deepspeed_config_path"
    return FormField(name, group, helps.get(name, ""), kind, choices, shown, is_list, code)


def clean(stage: str, values: Mapping[str, Any]) -> Values:
    """Return the values that say something, as text; unknown names and secrets go."""
    known = {field.name: field for field in form_fields(stage)}
    found: Values = {}
    for name, value in values.items():
        if name not in known or value is None:
            continue
        given = value if isinstance(value, list) else [value]
        items = [text for one in (given if known[name].is_list else given[:1]) if (text := _text(one))]
        if items and (items := _in_our_spelling(name, items)):
            found[name] = items if known[name].is_list else items[0]
    return found


def _in_our_spelling(name: str, items: list[str]) -> list[str]:
    """`all-linear` is ALL and `q_proj v_proj` two names, as on the command line; [] where that is the default."""
    try:
        tokens, _ = translate(name, items)
    except UsageError:
        return items  # told as soon as the form is read
    return [item for flag, given in tokens if flag == name for item in given]


def _text(value: Any) -> str:
    return "" if value is None or value == [] else shown_value(value).strip()


def argv_of(values: Values) -> list[str]:
    """Return the flags of a form.

    Raises:
        UsageError: A value that no command line can say.
    """
    words: list[str] = []
    for name, value in values.items():
        items = value if isinstance(value, list) else [value]
        if len(items) == 1:
            words += [f"--{name}={items[0]}"] if items[0].startswith("--") else [f"--{name}", items[0]]
            continue
        if any(item.startswith("--") for item in items):
            raise UsageError(f"--{name}: a value that begins with -- can only be the single one.")
        words += [f"--{name}", *items]
    return words


def command_of(stage: str, values: Values) -> str:
    """Return the command to copy."""
    return shlex.join(["llmtune", stage, *argv_of(values)])


def yaml_of(stage: str, values: Values) -> str:
    """Return the form as a file for --config."""
    import yaml

    head = f"# llmtune {stage} --config THIS_FILE\n_stage: {stage}\n"
    return head + (yaml.safe_dump(values, allow_unicode=True, sort_keys=False) if values else "")


def read_form(path: Path) -> tuple[str, Values, list[str]]:
    """Return the stage and the form of a YAML file, and what could not be said, one line each.

    Files of LLaMA-Factory and Axolotl are translated.

    Raises:
        UsageError: It is no file of flags.
    """
    found = converted(path)
    stage = found.stage if found.stage in STAGES else "sft"
    known = {field.name for field in form_fields(stage)}
    values = {line.flag: list(line.values) for line in found.lines}
    lines = [f"{one.theirs}: {one.reason}" for one in found.refusals]
    lines += [f"{name}: llmtune {stage} has no such flag" for name in values if name not in known | set(SECRETS)]
    return stage, clean(stage, values), lines


def refusals(stage: str, values: Values, root: Path, *, allow_code: bool) -> dict[str, str]:
    """Return why the board does not start this form: flag -> reason. The command line has no such limits."""
    found: dict[str, str] = {}
    for name, value in values.items():
        items = value if isinstance(value, list) else [value]
        if not allow_code and (reason := _code(name, items)):
            found[name] = reason
        elif outside := [item for item in items if leads_out(root, item.removeprefix("rm:").partition("#")[0])]:
            found[name] = f"{outside[0]} is outside of {root}."
    return found


def _code(name: str, items: Sequence[str]) -> str:
    runs = {
        "custom_register_path": True,
        "deepspeed_config_path": any(item not in packaged_configs() for item in items),
        **dict.fromkeys(CODE_FILES, any(".py" in item or "/" in item.removeprefix("rm:") for item in items)),
    }.get(name, name in RUNS_CODE and any(item.lower() in ("true", "1", "yes", "on") for item in items))
    if name == "rewards" and all(item.startswith("rm:") or ".py" not in item for item in items):
        runs = False
    return "It makes a run execute code: start the board with --allow_code true." if runs else ""
