"""The settings of a checkpoint in a new command: what a resumed run takes over, and what nobody may inherit."""

from __future__ import annotations

import dataclasses
import shlex
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmtune.arguments.checks import parse_train_args
from llmtune.arguments.fields import fits, on_resume, shown
from llmtune.arguments.stage import StageArguments
from llmtune.errors import CheckpointError, UsageError
from llmtune.utils.seal import is_own

EITHER = ({"max_steps", "num_train_epochs"}, {"use_flash_attn", "attn_impl"})
"""Arguments that set the same thing in two ways: if one is given, the other is not read from the checkpoint."""
FREE_TRAIN_ARGS = ("ddp_timeout", "ddp_find_unused_parameters", "logging_strategy", "logging_first_step")
"""Fields of TrainingArguments, given by --train_args, that do not affect the numbers of a run."""


@dataclasses.dataclass(frozen=True)
class Resumed:
    """The arguments of the resumed run.

    Attributes:
        taken: Arguments read from the checkpoint that differ from the defaults.
        changed: Argument -> old value, for those given with another value.
    """

    args: StageArguments
    taken: tuple[str, ...]
    changed: Mapping[str, Any]

    def lines(self, checkpoint: Path) -> list[str]:
        """Return the lines for the log."""
        values = vars(self.args)
        found = []
        if self.taken:
            text = ", ".join(f"{name} {shown(values[name])}" for name in self.taken)
            found.append(f"From {checkpoint.name}: {text}.")
        if self.changed:
            text = ", ".join(f"{name} {shown(old)} -> {shown(values[name])}" for name, old in self.changed.items())
            found.append(f"Changed since {checkpoint.name}: {text}.")
        return found


def resumed_arguments(args: StageArguments, saved: Mapping[str, Any], checkpoint: Path) -> Resumed:
    """Combine the arguments given now with those the run was trained with.

    Args:
        args: As given now. saved: The sft_args.json of the checkpoint; empty if there is none.

    Raises:
        CheckpointError: A fixed argument differs; all of them are listed, with both values.
        UsageError: The checkpoint comes from elsewhere and names code, or local paths.
    """
    kinds = {field.name: on_resume(field) for field in dataclasses.fields(type(args).of_stage()) if field.init}
    check_register_file(saved, args.custom_register_path, checkpoint)
    named = {name for either in EITHER if either & args.given for name in either}
    from_saved = [
        name
        for name, kind in kinds.items()
        if kind != "free" and name not in args.given and name not in named and saved.get(name) not in (None, [])
    ]
    check_saved_types(saved, typing.get_type_hints(type(args)), from_saved, checkpoint)
    check_strange_paths(saved, from_saved, checkpoint)
    differing = {
        name: saved[name]
        for name in kinds
        if name in args.given and name in saved and not _same(name, getattr(args, name), saved[name])
    }
    fixed = {name: old for name, old in differing.items() if kinds[name] == "fixed"}
    if fixed:
        raise CheckpointError(_refusal(args, fixed, checkpoint))
    values = {name: getattr(args, name) for name in kinds if name in args.given}
    values |= {name: saved[name] for name in from_saved}
    merged = type(args).of_stage()(**values)
    merged.given = args.given
    inherited = tuple(name for name in from_saved if not _same(name, getattr(args, name), saved[name]))
    return Resumed(merged, inherited, {name: old for name, old in differing.items() if kinds[name] == "taken"})


def _same(name: str, ours: Any, theirs: Any) -> bool:
    if name == "train_args":
        return _digits(ours) == _digits(theirs)
    if name in ("dataset", "val_dataset"):
        return [_place(item) for item in ours] == [_place(item) for item in theirs or []]
    if name in ("model_id_or_path", "tokenizer_id_or_path") and isinstance(ours, str) and isinstance(theirs, str):
        return _place(ours) == _place(theirs)
    if isinstance(ours, str) and isinstance(theirs, bool):  # a switch before it had an auto
        return ours == shown(theirs)
    return bool((ours or None) == (theirs or None)) if isinstance(ours, list) else bool(ours == theirs)


def _digits(items: list[str]) -> dict[str, Any]:
    """The --train_args that affect the numbers of a run."""
    return {name: value for name, value in parse_train_args(items or []).items() if name not in FREE_TRAIN_ARGS}


def _place(item: Any) -> str:
    path = Path(str(item)).expanduser()
    return str(path.resolve()) if path.exists() else str(item)


def _refusal(args: StageArguments, fixed: Mapping[str, Any], checkpoint: Path) -> str:
    theirs = ", ".join(f"--{name} {shown(old)}" for name, old in fixed.items())
    ours = ", ".join(f"--{name} {shown(getattr(args, name))}" for name in fixed)
    return (
        f"{checkpoint} was trained with {theirs}, but this command has {ours}. Use the same values, omit these flags, "
        "or start a new run without --resume_from_checkpoint."
    )


# Checkpoints from elsewhere may not run code here or open local paths


PATHS = ("model_id_or_path", "tokenizer_id_or_path", "cache_dir", "dataset", "val_dataset")
"""Arguments that may be local paths. `custom_register_path` names code, and has its own rule."""
PATHS_OF_STAGES = ("reference", "new_tokens_file")
"""Those that only resumed runs take over."""


WITHOUT = " To ignore the saved settings: --load_args_from_ckpt_dir false."
"""Additional advice for commands that have this flag; resuming does not."""


def check_register_file(saved: Mapping[str, Any], given: str | None, place: Path, *, advice: str = "") -> None:
    """Refuse to run Python code that a checkpoint names and this command does not.

    Raises:
        UsageError: With the flag to add if you trust it.
    """
    path = saved.get("custom_register_path")
    if path is None or given is not None:
        return
    raise UsageError(
        f"{place} was trained with custom code, {path}, which is not run unless you ask for it. If you trust it: "
        f"{_flag('custom_register_path', [path])}.{advice}"
    )


def check_strange_paths(saved: Mapping[str, Any], names: Iterable[str], place: Path) -> None:
    """Refuse local paths that a checkpoint from elsewhere names.

    Args:
        names: The arguments that would be read from the checkpoint.

    Raises:
        UsageError: With the flag to add if that path is meant.
    """
    if is_own(saved):
        return
    for name in (*PATHS, *PATHS_OF_STAGES):
        values = saved.get(name)
        found = [value for value in (values if isinstance(values, list) else [values]) if _is_path(value)]
        if name in names and found:
            flag = _flag(name, values if isinstance(values, list) else found)
            raise UsageError(
                f"{place} comes from elsewhere, or was modified, and names the local path {found[0]}, which is not "
                f"opened unless you ask for it. If you mean that path: {flag}."
            )


def check_saved_types(saved: Mapping[str, Any], hints: Mapping[str, Any], names: Iterable[str], place: Path) -> None:
    """Refuse saved settings of the wrong type.

    Raises:
        CheckpointError: With the name, the value, and what to do.
    """
    for name in names:
        value = saved.get(name)
        if value is not None and name in hints and not fits(value, hints[name]):
            raise CheckpointError(
                f"sft_args.json of {place} has an invalid value of {name}: {str(value)[:60]!r}. Give --{name}."
            )


def _is_path(value: Any) -> bool:
    """Whether a value is a local path, existing or not, rather than a registry key or hub id."""
    if not isinstance(value, str):
        return False
    text = value.partition("#")[0]
    return text.startswith(("/", "~", "\\", ".")) or Path(text).exists() or Path(value).exists() or text[1:3] == ":\\"


def _flag(name: str, values: list[Any]) -> str:
    return shlex.join([f"--{name}", *map(str, values)])
