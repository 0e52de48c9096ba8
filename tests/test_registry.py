"""The registry: every way in, every way to look up, and what it says when either goes wrong."""

from __future__ import annotations

import string
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmtune.data.info import DATASET_MAPPING, DatasetInfo
from llmtune.errors import DuplicateKeyError, LlmtuneError, UnknownKeyError, UsageError
from llmtune.models.info import MODEL_MAPPING, ModelInfo
from llmtune.registry import Registry, resolve_reference
from llmtune.templates.info import TEMPLATE_MAPPING, TemplateInfo

REGISTRIES = [MODEL_MAPPING, DATASET_MAPPING, TEMPLATE_MAPPING]


@dataclass(frozen=True, kw_only=True)
class Thing:
    name: str
    size: int = 1
    make: str | Callable[..., Any] = "some.module:make"


def things(**options: Any) -> Registry[Thing]:
    return Registry("thing", Thing, **{"function_field": "make", "list_command": "llmtune list things", **options})


def data_sets() -> Registry[DatasetInfo]:
    return Registry("dataset", DatasetInfo, function_field="get_function")


# Registering


def test_entry():
    registry = things()
    assert registry.register("k", Thing(name="a")) is None
    assert registry["k"] == Thing(name="a")


def test_fields():
    registry = things(field_aliases={"title": "name"})
    registry.register("k", title="a", size=3)
    assert registry["k"] == Thing(name="a", size=3)


def test_function():
    registry = data_sets()

    def rows():
        return []

    assert registry.register("k", rows) is rows
    assert registry["k"].get_function is rows


def test_bare_decorator():
    registry = data_sets()

    @registry.register("k")
    def rows():
        return []

    assert registry["k"].get_function is rows


def test_decorator_with_fields_that_suffice_alone():
    registry = things()

    @registry.register("k", name="a", aliases=("short",))
    def make():
        return None

    assert registry["short"] == Thing(name="a", make=make)
    assert list(registry) == ["k"]


def test_decorator_with_fields_that_need_the_function():
    """The entry refuses to be built without its function; registering waits for it (raised once)."""
    registry = data_sets()

    @registry.register("k", source="somewhere")
    def rows():
        return []

    assert registry["k"] == DatasetInfo(get_function=rows, source="somewhere")


def test_one_function_under_several_keys():
    registry = data_sets()

    @registry.register("a")
    @registry.register("b")
    def rows():
        return []

    assert registry["a"] == registry["b"]


@pytest.mark.parametrize("entry", [3, "text", DatasetInfo(path="x"), {"name": "a"}])
def test_wrong_types(entry):
    with pytest.raises(UsageError, match="expected Thing, not"):
        things().register("k", entry)


def test_unknown_field_suggests_and_lists():
    with pytest.raises(UsageError, match=r"unknown field 'nmae'. Did you mean 'name'\? Fields: name, size, make"):
        things().register("k", nmae="a")


def test_a_field_of_a_wrong_type_is_refused_at_once():
    """Not put off until a decoration that never comes."""
    registry: Registry[ModelInfo] = Registry("model", ModelInfo, function_field="get_function")
    with pytest.raises(UsageError, match="not iterable"):
        registry.register("k", model_id_or_path="x", requires=3)


def test_missing_field_where_nothing_is_decorated():
    registry: Registry[TemplateInfo] = Registry("template", TemplateInfo)
    with pytest.raises(UsageError, match="prompt"):
        registry.register("k", suffix=["</s>"])
    with pytest.raises(UsageError, match="cannot be used as a decorator"):
        registry.register("k", lambda: None)


def test_entry_and_fields_together():
    with pytest.raises(UsageError, match="not both"):
        things().register("k", Thing(name="a"), size=2)


def test_duplicate_names_the_first_place():
    registry = things()
    registry.register("k", name="a")
    line = sys._getframe().f_lineno - 1
    assert registry.origin("k") == f"{__file__}:{line}"
    with pytest.raises(DuplicateKeyError, match=rf"{Path(__file__).name}:{line}.*replace=True"):
        registry.register("k", name="b")
    with pytest.raises(DuplicateKeyError):
        registry.register("k", name="b")(len)
    assert registry["k"].name == "a"
    registry.register("k", name="b", replace=True)
    assert registry["k"].name == "b"


def test_read_only():
    registry = things()
    with pytest.raises(TypeError):
        registry["k"] = Thing(name="a")  # type: ignore[index]
    with pytest.raises(TypeError):
        del registry["k"]  # type: ignore[attr-defined]


# Aliases


def test_aliases():
    registry = things()
    registry.register("key", name="a", aliases=("one", "two"))
    registry.alias("later", "to-come")
    assert registry["one"] is registry["two"] is registry["key"]
    assert "one" in registry
    assert registry.canonical("one") == "key"
    assert registry.origin("two") == registry.origin("key")
    assert list(registry) == ["key"]
    assert registry.aliases == {"one": "key", "two": "key", "later": "to-come"}
    assert "later" not in registry
    with pytest.raises(UnknownKeyError, match="to-come"):
        registry["later"]


def test_alias_never_hides_another_entry():
    registry = things()
    registry.register("a", name="a")
    registry.register("b", name="b", aliases=("short",))
    with pytest.raises(DuplicateKeyError, match="cannot be an alias"):
        registry.alias("a", "b")
    with pytest.raises(DuplicateKeyError, match="an alias of the thing 'b'"):
        registry.alias("short", "a")
    with pytest.raises(DuplicateKeyError, match="an alias of the thing 'b'"):
        registry.register("short", name="c")
    assert (registry["a"].name, registry["short"].name) == ("a", "b")


# Looking up


def test_unknown_key_message():
    registry = things()
    registry.register("qwen-7b-chat", name="a")
    with pytest.raises(UnknownKeyError) as caught:
        registry["Qwen-7b-caht"]
    assert str(caught.value) == (
        "Unknown thing 'Qwen-7b-caht'. Did you mean 'qwen-7b-chat'? Run `llmtune list things` for all 1."
    )
    assert isinstance(caught.value, LookupError)
    with pytest.raises(UnknownKeyError, match=r"^Unknown thing 'zzz'\. Run"):
        registry["zzz"]


def test_get_takes_a_default():
    """An UnknownKeyError is no KeyError, so the get of Mapping would let it out."""
    registry = things()
    registry.register("k", name="a")
    assert registry.get("zzz") is None
    assert registry.get("zzz", 3) == 3
    assert registry.get("k").name == "a"


KEYS = [(registry, key) for registry in REGISTRIES for key in registry]
LETTERS = string.ascii_letters + string.digits + "-._ 中"


@pytest.mark.medium
@settings(max_examples=200, deadline=None)
@given(
    pair=st.sampled_from(KEYS),
    position=st.integers(0, 40),
    letter=st.sampled_from(LETTERS),
    kind=st.sampled_from(["drop", "insert", "change", "swap"]),
)
def test_one_typo_suggests_a_real_key(pair, position, letter, kind):
    registry, key = pair
    at = position % len(key)
    typo = {
        "drop": key[:at] + key[at + 1 :],
        "insert": key[:at] + letter + key[at:],
        "change": key[:at] + letter + key[at + 1 :],
        "swap": key[:at] + key[at + 1 : at + 2] + key[at] + key[at + 2 :],
    }[kind]
    assume(typo not in registry)
    near = registry.nearest(typo)
    assert near
    assert all(name in registry for name in near)
    with pytest.raises(UnknownKeyError, match="Did you mean"):
        registry[typo]


# What ships


def write_package(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text, encoding="utf-8")


def test_builtin_entries_are_loaded_on_first_use(tmp_path, monkeypatch):
    write_package(
        tmp_path, "builtin_things", "import tests_registry_home as home\nhome.registry.register('b', name='B')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry = things(builtin="builtin_things")
    monkeypatch.setitem(sys.modules, "tests_registry_home", type(sys)("tests_registry_home"))
    sys.modules["tests_registry_home"].registry = registry
    assert "builtin_things" not in sys.modules
    with pytest.raises(DuplicateKeyError, match=r"builtin_things\.py:2"):  # one's own key meets those that ship
        registry.register("b", name="mine")
    assert len(registry) == 1


def test_fault_in_what_ships_is_met_again(tmp_path, monkeypatch):
    write_package(tmp_path, "broken_things", "1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    registry = things(builtin="broken_things")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            len(registry)


def test_every_key_has_an_origin_and_its_type():
    for registry, key in KEYS:
        assert isinstance(registry[key], registry.entry_type)
        file, _, line = registry.origin(key).rpartition(":")
        assert Path(file).is_file()
        assert line.isdigit()


def test_every_model_names_a_template():
    assert [key for key, info in MODEL_MAPPING.items() if info.template not in TEMPLATE_MAPPING] == []


# Plugins

PLUGIN = """
from tests_plugin_types import Thing
good = Thing(name="good", size=7)
wrong_type = 3
def rows(): return []
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An installed package that brings entries, as pip leaves it."""
    write_package(tmp_path, "thing_plugin", PLUGIN)
    write_package(tmp_path, "thing_broken", "import a_module_that_nobody_has")
    info = tmp_path / "my_things-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-things\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[test.things]\ngood-thing = thing_plugin:good\nwrong-thing = thing_plugin:wrong_type\n"
        "broken-thing = thing_broken:entry\nrow-thing = thing_plugin:rows\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    home = type(sys)("tests_plugin_types")
    home.Thing = Thing
    monkeypatch.setitem(sys.modules, "tests_plugin_types", home)
    monkeypatch.delenv("LLMTUNE_PLUGINS", raising=False)
    yield
    for name in ("thing_plugin", "thing_broken"):
        sys.modules.pop(name, None)


def test_plugins_are_listed_unloaded_and_loaded_one_by_one(plugins):
    registry = things(entry_points="test.things")
    registry.register("own", name="mine")
    assert list(registry) == ["own", "good-thing", "wrong-thing", "broken-thing", "row-thing"]
    assert registry.origin("broken-thing") == "plugin my-things 1.2 (thing_broken:entry)"
    assert "thing_plugin" not in sys.modules
    assert registry["good-thing"].size == 7
    assert registry.origin("good-thing").startswith("plugin my-things 1.2")
    with pytest.raises(LlmtuneError, match=r"my-things 1\.2.*a_module_that_nobody_has.*LLMTUNE_PLUGINS=''"):
        registry["broken-thing"]
    with pytest.raises(LlmtuneError, match=r"gives int .*it must give Thing"):
        registry["wrong-thing"]
    assert registry["own"].name == "mine"
    assert registry["good-thing"].name == "good"


def test_plugin_function(plugins):
    registry = Registry("dataset", DatasetInfo, function_field="get_function", entry_points="test.things")
    assert registry["row-thing"].get_function() == []


@pytest.mark.parametrize(("chosen", "found"), [("", 0), ("others", 0), ("others, my-things", 4)])
def test_plugins_can_be_chosen(plugins, monkeypatch, chosen, found):
    monkeypatch.setenv("LLMTUNE_PLUGINS", chosen)
    registry = things(entry_points="test.things")
    assert len(registry) == found
    assert len(registry.plugins) == found


# References


def test_reference():
    assert resolve_reference("os.path:join", what="x")("a", "b") == str(Path("a", "b"))
    assert resolve_reference(len, what="x") is len


@pytest.mark.parametrize("reference", ["no_such_module:f", "os.no_such_part:f", "os.path:no_such_name", "os:sep", "os"])
def test_wrong_reference_says_what_names_it(reference):
    with pytest.raises(LlmtuneError, match=r"^The entry 'k' names"):
        resolve_reference(reference, what="The entry 'k'")


@pytest.mark.parametrize("inner", ["another_missing_module", "needs", "needs_missing_modul"])
def test_missing_module_inside_the_module_is_not_hidden(tmp_path, monkeypatch, inner):
    """`needs` begins the name of the module asked for, and yet is another one."""
    write_package(tmp_path, "needs_missing_module", f"import {inner}")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError) as caught:
        resolve_reference("needs_missing_module:f", what="x")
    assert caught.value.name == inner


def test_registering_everything_is_quick_and_pure():
    code = (
        "import sys\nfrom llmtune.models.info import MODEL_MAPPING as m\n"
        "from llmtune.data.info import DATASET_MAPPING as d\n"
        "from llmtune.templates.info import TEMPLATE_MAPPING as t\nassert len(m) and len(d) and len(t)\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'peft', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
