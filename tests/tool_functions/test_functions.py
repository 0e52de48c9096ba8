"""TOOL_MAPPING, the specs of --tool_functions, schemas and calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import llmtune
from llmtune.cli.main import main
from llmtune.errors import DuplicateKeyError, LlmtuneError, UsageError
from llmtune.samples.offered import offer_tools
from llmtune.tool_functions.calculator import calculate
from llmtune.tool_functions.call import ToolBox
from llmtune.tool_functions.functions import load_tools
from llmtune.tool_functions.info import TOOL_MAPPING, ToolInfo, register_tool
from llmtune.types import ToolCall

FILE = '''
from helper import SIZE

def size(name: str, times: int = 1) -> int:
    """How large a thing is.

    Args:
        name: Of the thing
        times: How often
    """
    return SIZE * times

async def later(name: str) -> str:
    """What comes.

    Args:
        name: Of the thing
    """
    return name

def bare(x):
    return x

def undocumented(x: int) -> int:
    return x

def _private(x: int) -> int:
    """No tool."""
    return x
'''
REGISTERS = '''
from llmtune import register_tool

@register_tool("first", schema={"name": "first", "parameters": {}})
def anything(**arguments):
    return arguments

def helper(x: int) -> int:
    """Beside the tools."""
    return x
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("SIZE = 3")
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "registers.py").write_text(REGISTERS)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "empty.py").write_text("def f(x):\n    return x\n")
    return tmp_path


def test_names_are_exported():
    assert llmtune.TOOL_MAPPING is TOOL_MAPPING
    assert llmtune.ToolInfo is ToolInfo
    assert {"TOOL_MAPPING", "ToolInfo", "register_tool"} <= {*llmtune.__all__}


@pytest.mark.parametrize("key", list(TOOL_MAPPING))
def test_every_key_has_a_schema_and_a_description(key):
    (tool,) = load_tools([key]).values()
    function = tool.schema()["function"]
    assert function["name"] == key
    assert function["description"]
    assert all(one["description"] for one in function["parameters"]["properties"].values())
    assert TOOL_MAPPING[key].description.endswith(".")


def test_list_and_show_know_tools(capsys):
    assert main(["list", "tools"]) == 0
    assert "calculate" in capsys.readouterr().out
    assert main(["show", "tool", "calculate"]) == 0
    assert "llmtune.tool_functions.calculator:calculate" in capsys.readouterr().out


def test_functions_are_registered_by_decorator_and_by_call():
    @register_tool("twice")
    def double(x: int) -> int:
        """Double a number.

        Args:
            x: The number
        """
        return 2 * x

    schema = {"type": "function", "function": {"name": "other", "parameters": {}}}
    register_tool("other", ToolInfo(function=double, schema=schema, description="Doubles."))
    found = load_tools(["twice", "other"])
    assert found["twice"].schema()["function"]["name"] == "twice"
    assert found["other"].schema() == schema
    assert ToolBox(found).call(ToolCall("twice", '{"x": 4}')).text == "8"
    with pytest.raises(DuplicateKeyError):
        register_tool("twice", double)
    with pytest.raises(UsageError, match="JSON schema"):
        ToolInfo(function=double, schema="text")  # type: ignore[arg-type]


def test_of_a_file_typed_functions_are_taken_or_what_it_registers(folder):
    assert list(load_tools([str(folder / "mine.py")])) == ["size", "later"]
    assert list(load_tools([f"{folder / 'mine.py'}:bare"])) == ["bare"]
    box = ToolBox(load_tools([str(folder / "mine.py")]))
    assert box.call(ToolCall("size", {"name": "a", "times": 2})).text == "6"
    assert box.call(ToolCall("later", {"name": "a"})).text == "a"
    own = load_tools([str(folder / "registers.py")])
    assert list(own) == ["first"]
    assert own["first"].schema() == {"type": "function", "function": {"name": "first", "parameters": {}}}
    assert list(load_tools([f"{folder / 'registers.py'}:anything"])) == ["first"]
    assert ToolBox(own).call(ToolCall("first", {"a": 1})).text == '{"a": 1}'
    assert load_tools(["calculate", "calculate"]).keys() == {"calculate"}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("calculates", "Did you mean 'calculate'"),
        ("{}/nothing.py", "there is no file"),
        ("{}/broken.py", r"cannot be imported: ZeroDivisionError.*broken.py:1.*remove it from --tool_functions"),
        ("{}/empty.py", "registers no tool, and has no public function with types and a docstring"),
        ("{}/mine.py:other", "there is no function 'other'. It has: size, later, bare, undocumented"),
        ("no_such_module_here:f", "there is no module 'no_such_module_here'"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_line(given, text, folder):
    with pytest.raises(LlmtuneError, match=text) as caught:
        load_tools([given.format(folder)])
    assert "\n" not in str(caught.value)


def test_a_function_without_a_docstring_has_no_schema(folder):
    for name in ("bare", "undocumented"):
        (tool,) = load_tools([f"{folder / 'mine.py'}:{name}"]).values()
        with pytest.raises(UsageError, match=rf"'{name}' \(.*mine.py:\d+\) has no schema.*Args:") as caught:
            tool.schema()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("17 * 23", "391"),
        ("2 * (3 + 4)", "14"),
        ("7 / 2", "3.5"),
        ("-8 / 2", "-4"),
        ("2 ** 10", "1024"),
        ("7 % 4", "3"),
    ],
)
def test_the_calculator_computes(expression, result):
    assert calculate(expression) == result


@pytest.mark.parametrize(
    "expression",
    ["9**9**9", "10 ** 1000", "a + 1", "", "(-8) ** 0.5", "'a' * 9", "True + 1", "1 / 0"],
)
def test_the_calculator_refuses_all_else(expression):
    with pytest.raises((ValueError, SyntaxError, ZeroDivisionError)):
        calculate(expression)


# What rows offer


def dataset(*tools: str | None):
    from datasets import Dataset, Features, Value

    features = Features({"tools": Value("string"), "at": Value("int64")})
    return Dataset.from_dict({"tools": list(tools), "at": list(range(len(tools)))}, features=features)


def test_rows_without_tools_offer_all_functions():
    own = json.dumps([{"name": "calculate", "parameters": {}}])
    given = dataset(None, own, None)
    found = offer_tools(given, load_tools(["calculate"]))
    assert found[1] == given[1]
    assert found["at"][:] == given["at"][:]
    (schema,) = json.loads(found[0]["tools"])
    assert schema == load_tools(["calculate"])["calculate"].schema()
    assert found.features == given.features
    again = offer_tools(given, load_tools(["calculate"]))
    assert again._fingerprint == found._fingerprint != given._fingerprint
    assert offer_tools(dataset(own, own), load_tools(["calculate"]))._fingerprint == dataset(own, own)._fingerprint
    picked = offer_tools(given.select([2, 1]), load_tools(["calculate"]))
    assert picked["at"][:] == [2, 1]


def test_a_row_that_offers_what_there_is_not_is_named():
    own = json.dumps([{"type": "function", "function": {"name": "weather"}}])
    with pytest.raises(UsageError, match="row 1 of the training rows offers 'weather', which has no function"):
        offer_tools(dataset(None, own), load_tools(["calculate"]))
