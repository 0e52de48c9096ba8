"""Specs of `--rewards`: `accuracy format*0.2 'repetition(n=4)*0.5' my_rewards.py:fn package.module:fn rm:PATH`."""

from __future__ import annotations

import ast
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from llmtune.errors import UsageError
from llmtune.rewards.files import own_function
from llmtune.rewards.functions import option_names
from llmtune.rewards.info import REWARD_MAPPING

MODEL = "rm:"
EXAMPLE = "Write key, key*weight, 'key(option=value)*weight', path/to/file.py:fn or rm:FOLDER"
_SPEC = re.compile(r"(?P<head>.+?\.py(?::[^()*]*)?|[^()*]*)(?:\((?P<options>.*)\))?\s*(?:\*(?P<weight>[^()*]*))?", re.S)


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """One reward of a run.

    Attributes:
        text: As the user wrote it.
        name: In logs, unique in a run: the key, the name of the function, or of the reward model's folder.
        weight: Factor in the sum; may be negative.
        kind: An entry of REWARD_MAPPING, a function of the user's own, or a reward model.
        target: The key, `place:name`, or the folder or hub id of the model.
        options: Those that the user wrote.
        function: The function or class, as it stands in the user's file or module; None for the other kinds.
    """

    text: str
    name: str
    weight: float = 1.0
    kind: Literal["key", "file", "model"] = "key"
    target: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    function: Any = field(default=None, repr=False, compare=False)


def parse_rewards(texts: Sequence[str]) -> list[RewardSpec]:
    """Parse the values of `--rewards`. Files and modules of the user are imported.

    Raises:
        UsageError: Unknown key, file, function or option; a weight that is not a number; the same name twice.
        LlmtuneError: A file of the user raises.
    """
    specs = _tell_models_apart([_parse(text.strip()) for text in texts])
    names = [spec.name for spec in specs]
    for spec in specs:
        if names.count(spec.name) > 1:
            both = " and ".join(one.text for one in specs if one.name == spec.name)
            raise UsageError(f"--rewards: {both} have the same name, {spec.name!r}. Keep one, or rename a function.")
    return specs


def _parse(text: str) -> RewardSpec:
    if text.startswith(MODEL):
        return _parse_model(text)
    match = _SPEC.fullmatch(text)
    if match is None or not match["head"].strip():
        raise UsageError(f"--rewards {text}: this cannot be parsed. {EXAMPLE}.")
    head = match["head"].strip()
    options = _options(text, match["options"] or "")
    weight = _weight(text, match["weight"])
    place, colon, name = head.rpartition(":")
    if head.endswith(".py"):
        place, name = head, ""
    elif not colon:
        key = REWARD_MAPPING.canonical(head)
        _check_options(text, options, option_names(REWARD_MAPPING[key]))
        return RewardSpec(text=text, name=key, weight=weight, target=key, options=options)
    function = own_function(place, name)
    _check_options(text, options, option_names(function))
    return RewardSpec(text=text, name=name, weight=weight, kind="file", target=head, options=options, function=function)


def _parse_model(text: str) -> RewardSpec:
    path, star, weight = text.removeprefix(MODEL).rpartition("*")
    if not star:
        path, weight = text.removeprefix(MODEL), ""
    if not path.strip("/ "):
        raise UsageError(f"--rewards {text}: name the reward model, rm:FOLDER or rm:hub/id.")
    factor = _weight(text, weight if star else None)
    return RewardSpec(text=text, name=Path(path).name, weight=factor, kind="model", target=path)


def _tell_models_apart(specs: list[RewardSpec]) -> list[RewardSpec]:
    """Two runs both have a checkpoint-100: the folder above joins the name where the names of models are equal."""
    names = [spec.name for spec in specs if spec.kind == "model"]
    return [
        replace(spec, name=f"{Path(spec.target).parent.name}-{spec.name}")
        if spec.kind == "model" and names.count(spec.name) > 1
        else spec
        for spec in specs
    ]


def _weight(text: str, weight: str | None) -> float:
    if weight is None:
        return 1.0
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"--rewards {text}: {weight.strip()!r} is not a weight. Write it as in format*0.2.")
    return value


def _options(text: str, inner: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in _split(inner):
        name, equals, value = part.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UsageError(f"--rewards {text}: {part.strip()!r} is not an option. Write name=value.")
        if name.strip() in options:
            raise UsageError(f"--rewards {text}: the option {name.strip()!r} is given twice. Keep one.")
        options[name.strip()] = _value(value.strip())
    return options


def _split(inner: str) -> list[str]:
    """Split at commas outside of quotes and brackets."""
    parts, depth, quote = [""], 0, ""
    for character in inner:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]


def _value(text: str) -> Any:
    """Return a number, true, false, null, a list, or text; in quotes a backslash stays one, for regular expressions."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    words = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def _check_options(text: str, given: Iterable[str], known: Sequence[str] | None) -> None:
    """Refuse unknown options; `known` is None where any is taken."""
    for name in given:
        if known is not None and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            options = ", ".join(known) or "none"
            raise UsageError(f"--rewards {text}: unknown option {name!r}.{hint} Options: {options}.")
