"""`--json` of `list` and `show`: the facts of the tables, as JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from llmtune.cli import list as list_command
from llmtune.cli.list import REGISTRIES
from llmtune.cli.main import main
from llmtune.cli.words import take_switch
from llmtune.errors import UsageError


def out(capsys, *argv: str) -> str:
    assert main(list(argv)) == 0
    found: str = capsys.readouterr().out
    return found


@pytest.mark.parametrize("what", [*REGISTRIES, "plugins"])
def test_list_prints_the_same_facts_as_json(what, capsys):
    rows: list[dict[str, Any]] = json.loads(out(capsys, "list", what, "--json", "true"))
    table = out(capsys, "list", what)
    if what == "plugins":
        assert rows == []
        return
    assert [row["key"] for row in rows] == list(REGISTRIES[what])
    assert all(" ".join(str(value).split()) in " ".join(table.split()) for row in rows for value in row.values())


@pytest.mark.parametrize("what", [name for name in REGISTRIES if name != "metrics"])
def test_show_prints_every_entry_as_json(what, capsys):
    registry = REGISTRIES[what]
    kind = registry.kind.replace(" ", "_")
    for key in list(registry)[:5]:
        found = json.loads(out(capsys, "show", kind, key, "--json"))
        assert found["key"] == key
        assert {field.name for field in dataclasses.fields(registry[key])} <= set(found)


def test_switches_of_list_and_show():
    assert take_switch(["a", "--json"], "--json") == (True, ["a"])
    assert take_switch(["--json", "false", "b"], "--json") == (False, ["b"])
    assert take_switch(["--json=true"], "--json") == (True, [])
    with pytest.raises(UsageError, match="expected true or false"):
        take_switch(["--json=maybe"], "--json")
    with pytest.raises(UsageError, match=r"--a.*\n.*--b"):
        list_command.run(["models", "--a", "--b"])
