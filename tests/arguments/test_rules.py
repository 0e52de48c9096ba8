"""Rules of arguments are data beside their fields, and one walk applies them to every command."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from llmtune.arguments.evaluate import EvaluateArguments
from llmtune.arguments.export import ExportArguments, MergeArguments
from llmtune.arguments.fields import Problems, Rule, above, at_least, between, check_rules, free, only, unused_flags
from llmtune.arguments.infer import InferArguments
from llmtune.arguments.launch import LaunchArguments
from llmtune.arguments.service import ServeArguments, WebArguments
from llmtune.arguments.stage import SftArguments, StageArguments

CLASSES = [
    *(SftArguments, InferArguments, EvaluateArguments, ServeArguments, WebArguments),
    *(MergeArguments, ExportArguments, LaunchArguments),
]


@pytest.mark.parametrize(
    ("allowed", "good", "bad", "text"),
    [
        (at_least(1), [1, 7, None], [0, -1], "1 or more"),
        (at_least(1, also=-1, meaning="all"), [1, -1, None], [0, -2], "1 or more, or -1 for all"),
        (above(0), [0.1, None], [0, -1.0], "above 0"),
        (between(0, 1), [0, 0.5, 1], [-0.1, 1.1], "from 0 to 1"),
        (between(0, 1, open_high=True), [0, 0.9], [1], "from 0 to below 1"),
        (between(0, 1, open_low=True), [0.1, 1], [0, 1.1], "above 0, up to 1"),
    ],
)
def test_a_range_takes_its_numbers_and_none_and_names_itself(allowed, good, bad, text):
    assert all(map(allowed.holds, good))
    assert not any(map(allowed.holds, bad))
    assert str(allowed) == text


@dataclass(kw_only=True)
class Group:
    width: int = free(1, within=at_least(1))
    depth: int = free(0, only=only(width=(2, 3)))
    RULES: ClassVar[tuple[Rule, ...]] = (Rule(lambda args: args.width != 9, "--width {width} is taken."),)


@dataclass(kw_only=True)
class Composed(Group):
    height: int = free(0)
    names: list[str] = field(default_factory=list)
    ONLY: ClassVar[dict[Any, Any]] = {Group: only(height=5)}


def problems_of(args: Any) -> list[str]:
    problems = Problems()
    check_rules(args, problems)
    return problems.lines


def test_rules_of_every_class_that_arguments_are_composed_of_are_checked():
    assert problems_of(Composed()) == []
    assert problems_of(Composed(width=0)) == ["--width must be 1 or more, not 0."]
    assert problems_of(Composed(width=9)) == ["--width 9 is taken."]


def test_a_flag_is_unused_where_its_own_or_its_groups_condition_fails():
    assert unused_flags(Composed()) == []
    assert unused_flags(Composed(height=5, width=2, depth=1)) == []
    assert unused_flags(Composed(height=5, width=4, depth=1)) == ["--depth"]
    assert unused_flags(Composed(width=2, depth=1)) == ["--width", "--depth"]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_no_class_takes_a_flag_away_that_it_inherits(cls):
    hidden = {field.name for field in dataclasses.fields(cls) if not field.init}
    inherited = {name for base in cls.__mro__[1:] for name in getattr(base, "__dataclass_fields__", {})}
    of_parents = {
        field.name
        for base in cls.__mro__[1:]
        if dataclasses.is_dataclass(base)
        for field in dataclasses.fields(base)
        if field.init
    }
    assert hidden & inherited & of_parents == set()


@pytest.mark.parametrize("field", dataclasses.fields(StageArguments), ids=lambda field: field.name)
def test_conditions_name_fields_of_the_arguments_and_defaults_fulfil_ranges(field):
    names = {one.name for one in dataclasses.fields(StageArguments)} | set(dir(StageArguments))
    condition, allowed = field.metadata.get("only"), field.metadata.get("within")
    assert condition is None or set(condition.values) <= names
    assert allowed is None or field.default is dataclasses.MISSING or allowed.holds(field.default)
