"""The flags that a file gives a command, as tokens for the parser, and the keys that cannot be said."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtune.arguments.aliases import ALIASES, Tokens, translate
from llmtune.arguments.elsewhere.files import is_config_word, is_run, load_config, translation_of
from llmtune.arguments.elsewhere.llama_factory import INFER
from llmtune.arguments.elsewhere.translation import Translation
from llmtune.checkpoint import saved_settings
from llmtune.errors import UsageError
from llmtune.utils.logging import log_once

__all__ = ["FileOfFlags", "from_file", "is_config_word"]


@dataclass
class FileOfFlags:
    """The flags of one file. `problems`: one line for each key that cannot be said here."""

    path: Path
    tokens: Tokens = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def from_file(path: Path, cls: type, known: Collection[str], given: Tokens) -> FileOfFlags:
    """Read a file of flags.

    Args:
        cls: The command's arguments. known: Their names. given: The flags of the command line, which replace the
            file's, and what the file could not have said.

    Raises:
        UsageError: It is no such file; another stage's; a run from elsewhere that names code or local paths.
    """
    content = load_config(path)
    stage = getattr(cls, "STAGE", None)
    found = translation_of(content, known)
    if found is None:
        return _of_ours(path, content, stage, known)
    if stage is not None:
        _check_stage(path, found.stage, stage)
    elif found.stage != INFER:  # a file of training, for a command that trains nothing
        found.lines = [line for line in found.lines if line.theirs]
    typed = _ours_of(given)
    log_once(_summary(path, found, typed), level=20)
    problems = [f"{path}, {one.theirs}: {one.reason}" for one in found.standing(typed)]
    return FileOfFlags(path, found.tokens(), problems)


def _of_ours(path: Path, content: Mapping[str, Any], stage: str | None, known: Collection[str]) -> FileOfFlags:
    named = content.get("stage")
    if named is not None and "stage" not in known:
        if stage is not None:
            _check_stage(path, str(named), stage)
        content = {key: value for key, value in content.items() if key != "stage"}
    if is_run(path):
        _check_origin(path)
    tokens = [
        (key.replace("-", "_"), _values(value, f"--config {path}: {key[:60]}"))
        for key, value in content.items()
        if value is not None and not key.startswith("_")
    ]
    return FileOfFlags(path, tokens)


def _check_stage(path: Path, named: str, stage: str) -> None:
    if named != stage:
        raise UsageError(f"{path} is of the stage {named}: call llmtune {named} {path}, or llmtune train {path}.")


def _check_origin(path: Path) -> None:
    """Refuse code and local paths that a run folder from elsewhere names; a file named as such is the user's word."""
    from llmtune.arguments.inheritance import check_register_file, check_strange_paths

    saved = saved_settings(path)
    check_register_file(saved, None, path)
    check_strange_paths(saved, list(saved), path)


def _ours_of(given: Tokens) -> set[str]:
    """Our names of the flags of a command line."""
    found = set()
    for flag, values in given:
        found.add(flag)
        if flag in ALIASES:
            try:
                found |= {name for name, _ in translate(flag, values)[0]}
            except UsageError:  # said where flags are translated
                continue
    return found


def _summary(path: Path, found: Translation, typed: Collection[str]) -> str:
    taken = [line for line in found.lines if line.theirs and line.flag not in typed]
    defaults = [line for line in found.lines if not line.theirs and line.flag not in typed]
    parts = [f"{path} is a file of {found.tool}, stage {found.stage}: {len(taken)} keys taken over"]
    notes = [f"{line.theirs} -> {line.flag} {' '.join(line.values)} ({line.note})" for line in taken if line.note]
    parts += [f"with a difference: {'; '.join(notes)}"] if notes else []
    texts = [f"{line.flag} {' '.join(line.values)}" for line in defaults]
    parts += [f"its defaults: {', '.join(texts)}"] if texts else []
    reasons = [f"{key} ({reason})" for key, reason in found.harmless if reason != "not used"]
    parts += [f"without effect here: {', '.join(reasons)}"] if reasons else []
    return ". ".join(part[0].upper() + part[1:] if index else part for index, part in enumerate(parts)) + (
        f". `llmtune convert {path}` prints ours."
    )


def _values(value: object, where: str) -> list[str]:
    """A flag's values. Nothing is nested deeper, so that a file of a few lines cannot stand for gigabytes of text."""
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    if any(isinstance(item, (dict, list)) for item in items):
        raise UsageError(f"{where} nests lists or mappings; a flag takes values, or name: value pairs.")
    if isinstance(value, dict):
        return [f"{key}={_text(item)}" for key, item in value.items()]
    return [_text(item) for item in items]


def _text(value: object) -> str:
    """A value as written for a flag; a list inside a list is refused above."""
    return str(value).lower() if isinstance(value, bool) else str(value)
