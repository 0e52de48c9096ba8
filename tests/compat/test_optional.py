"""Stand-ins for optional packages: nothing is imported until it is used, and the real package is what one gets then."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from llmtune.compat import optional
from llmtune.compat.optional import _and_loaded, stood_in

NAMES = ("standby", "standby.below.deep")


@pytest.fixture
def standby(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that is installed and not imported, with stand-ins for it and for a module of it."""
    folder = tmp_path / "standby" / "below"
    folder.mkdir(parents=True)
    (tmp_path / "standby/__init__.py").write_text("value = 7\n")
    (folder / "__init__.py").write_text("")
    (folder / "deep.py").write_text("def double(number):\n    return 2 * number\n\n\nother = 5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(optional, "STOOD_IN", {"standby": (), "standby.below.deep": ("double",), "no_such_one": ()})
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "standby"]:
        del sys.modules[name]


def is_imported() -> bool:
    found = [module for name, module in sys.modules.items() if name.partition(".")[0] == "standby"]
    return any(not isinstance(module, optional._StandIn) for module in found)


def imported(name: str) -> ModuleType:
    """What `import name as module` gives."""
    return importlib.import_module(name)


@pytest.mark.usefixtures("standby")
def test_imports_are_free_and_nothing_stays() -> None:
    with stood_in(*NAMES):
        module = imported("standby")
        double = imported("standby.below.deep").double
        assert find_spec("standby") is not None
        assert not hasattr(module, "__file__")  # as inspect asks of each module
        inspect.getmodule(test_imports_are_free_and_nothing_stays)
    assert not any(name.startswith("standby") for name in sys.modules)
    assert double(4) == 8
    assert module.value == 7
    assert imported("standby") is not module
    assert imported("standby").value == 7


@pytest.mark.usefixtures("standby")
def test_use_within_the_block_imports() -> None:
    with stood_in(*NAMES):
        assert imported("standby").value == 7
        assert is_imported()
        real = sys.modules["standby"]
    assert sys.modules["standby"] is real
    with pytest.raises(AttributeError, match="nothing"):
        _ = imported("standby").nothing


@pytest.mark.usefixtures("standby")
def test_attributes_that_are_no_listed_functions_come_from_the_module() -> None:
    with stood_in(*NAMES):
        deep = imported("standby.below.deep")
    assert deep.other == 5


@pytest.mark.usefixtures("standby")
def test_what_is_imported_or_missing_stays_as_it_is() -> None:
    real = imported("standby")
    with stood_in(*NAMES, "no_such_one"):
        assert imported("standby") is real
        assert "no_such_one" not in sys.modules
        with pytest.raises(ModuleNotFoundError):
            imported("no_such_one")


@pytest.mark.usefixtures("standby")
def test_availability_is_asked_once_it_can_matter() -> None:
    asked: list[bool] = []
    check = _and_loaded("standby", lambda: not asked.append(True))  # type: ignore[func-returns-value]
    assert not check()
    assert asked == []
    imported("standby")
    assert check()
    assert asked == [True]


def test_peft_asks_of_all_that_it_can_import() -> None:
    """A further check of peft's, or one under another name, would import its package in each run."""
    import peft.tuners.lora.model as lora
    from peft import import_utils

    assert set(optional.ASKED_BY_PEFT) <= set(vars(import_utils))
    assert {"is_bnb_available", "is_bnb_4bit_available"} <= set(vars(lora))
    optional.import_libraries()
    assert vars(lora)["is_bnb_available"] is not import_utils.is_bnb_available
