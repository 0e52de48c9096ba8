"""The JSON schema of a stage's YAML, from the dataclass that the parser reads."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any, Literal

from llmtune.arguments.aliases import ALIASES
from llmtune.arguments.fields import Range
from llmtune.arguments.parser import field_help, fields_by_owner, inner_type
from llmtune.arguments.stages import STAGES, stage_arguments

DRAFT = "http://json-schema.org/draft-07/schema#"
"""The draft that editors' YAML servers know."""
SCALAR = ["string", "number", "boolean"]


def stage_schema(stage: str) -> dict[str, Any]:
    """Return the schema of a stage: each flag with its help, choices, limits and default.

    Raises:
        UnknownKeyError: No such stage.
    """
    cls = stage_arguments(stage)
    hints = typing.get_type_hints(cls)
    properties: dict[str, Any] = {
        "stage": {"const": stage, "description": "For `llmtune train FILE`."},
    }
    for owner, names in fields_by_owner(cls):
        helps = field_help(owner)
        for name in names:
            field = cls.__dataclass_fields__[name]
            properties[name] = {"description": " ".join(helps[name].split()), **_value(hints[name], field)}
    for theirs, alias in ALIASES.items():
        if theirs not in properties and alias.target in properties:
            properties[theirs] = {**properties[alias.target], "description": f"Another spelling of {alias.target}."}
        elif theirs not in properties and not alias.target:
            text = f"No effect: {alias.ignored}." if alias.ignored else "Of another tool; translated."
            properties[theirs] = {"description": text}
    return {
        "$schema": DRAFT,
        "title": f"llmtune {stage}",
        "description": STAGES[stage].description,
        "type": "object",
        "properties": properties,
        "patternProperties": {"^_": {}},
        "additionalProperties": False,
    }


def _value(hint: Any, field: dataclasses.Field[Any]) -> dict[str, Any]:
    """Type, choices, limits and default of a field. An empty value, null, is that of a flag that is not given."""
    inner, is_list = inner_type(hint)
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    shown = {} if default is None else {"default": default}
    if is_list:
        kinds: list[Any] = [{"type": "array", "items": {"type": SCALAR}}, {"type": [*SCALAR, "null"]}]
        if field.name == "train_args":
            kinds.append({"type": "object", "additionalProperties": {"type": SCALAR}})
        return {"anyOf": kinds, **shown}
    if typing.get_origin(inner) is Literal:
        words = list(typing.get_args(inner))
        switches = [True, False] if field.name == "gradient_checkpointing" else _switches(words)
        return {"enum": [*words, *switches, None], **shown}
    kind = {bool: "boolean", int: "integer", float: "number"}.get(inner, "string")
    return {"type": [kind, "null"], **_limits(field.metadata.get("within")), **shown}


def _switches(words: list[Any]) -> list[bool]:
    """YAML's own reading of words that are choices: `no` is false to an editor, and text to us."""
    return [value for value, names in ((True, ("true", "yes", "on")), (False, ("false", "no", "off")))
            if any(name in words for name in names)]  # fmt: skip


def _limits(within: Range | None) -> dict[str, Any]:
    if within is None:
        return {}
    low, high = within.low, within.high
    if within.also is not None:
        low = min(low, within.also)
    found: dict[str, Any] = {}
    if low > -math.inf:
        found["exclusiveMinimum" if within.open_low and within.also is None else "minimum"] = low
    if high < math.inf:
        found["exclusiveMaximum" if within.open_high else "maximum"] = high
    return found
