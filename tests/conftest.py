"""What every test may ask for."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: its threads and those of other processes would fight
os.environ["LLMTUNE_PLUGINS"] = ""
os.environ["LLMTUNE_OFFLINE"] = "1"  # no test asks a hub, but those that bring one of their own

import pytest
from hypothesis import settings

from llmtune.cli.list import REGISTRIES
from llmtune.losses.info import LOSS_MAPPING
from llmtune.run import plot

from .prepared import SAMPLE_TOKENS, paint_nothing
from .tiny_vision import make_vision

settings.register_profile("ci", derandomize=True)  # the same examples on every machine; developers' runs explore
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def assets() -> Path:
    """The shared folder of real data, tokenizers and oracles."""
    folder = Path(os.environ.get("LLMTUNE_TEST_ASSETS") or Path(__file__).resolve().parents[2] / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"no test assets at {folder}; set LLMTUNE_TEST_ASSETS")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["LLMTUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


LONG_SECONDS = 5
"""A test that takes longer than this has no place in `make test-fast`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: at the end of the run, no process waits for another's last long one."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Where neither slow nor medium tests were asked for, name those that should be one of them.

    A line, no failure: a machine may be busy.
    """
    if "not medium" not in config.option.markexpr:
        return
    reports = [report for report in terminalreporter.getreports("passed") if report.when == "call"]
    if long := [report for report in reports if report.duration > LONG_SECONDS]:
        terminalreporter.section(f"over {LONG_SECONDS} s: make them shorter, or mark them medium or slow")
        for report in sorted(long, key=lambda report: -report.duration):
            terminalreporter.line(f"{report.duration:.1f} s  {report.nodeid}")


CUSTOM = "llmtune_custom_"
"""What modules of --custom_register_path are called; each is run once in a process."""


@pytest.fixture(autouse=True)
def _registrations_end_with_their_test() -> Iterator[None]:
    """Else the tests after it would depend on it; no other test needs to reach into a registry.

    What a module registers while it is collected, or a fixture of a wider scope, stays.
    """
    before: list[tuple[Any, dict[str, Any]]] = []
    for registry in (*REGISTRIES.values(), LOSS_MAPPING):
        registry._load_builtin()  # what ships with llmtune, which would not be loaded a second time
        before.append(
            (registry, {name: dict(getattr(registry, name)) for name in ("_entries", "_origins", "_aliases")})
        )
    imported = list(sys.modules)
    yield
    for registry, parts in before:
        for name, values in parts.items():
            setattr(registry, name, values)
    if len(sys.modules) == len(imported) and next(reversed(sys.modules)) == imported[-1]:
        return  # nothing was imported: there is no need to look at thousands of names after each of thousands of tests
    for name in [name for name in sys.modules if name.startswith(CUSTOM) and name not in imported]:
        del sys.modules[name]


_modules_at_last_freeze = 0


@pytest.fixture(autouse=True)
def _what_is_imported_is_no_garbage() -> None:
    """accelerate collects garbage as each training begins, and looks at all that torch and transformers have made."""
    global _modules_at_last_freeze
    if len(sys.modules) > _modules_at_last_freeze + 100:
        gc.collect()
        gc.freeze()
        _modules_at_last_freeze = len(sys.modules)


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_painted_or_synced() -> Iterator[None]:
    """Each of hundreds of trainings here would paint a dozen curves, which takes longer than the training itself, and
    wait for the disk some forty times. tests/run/test_curves.py paints. Of processes of their own, those that
    tests/prepared.py forks wait for the disk, the others do both.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot.Sheet, "draw", paint_nothing)
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True)
def _samples_of_a_report_are_short() -> None:
    """Evaluations and reports have what the model says now: answers that few tests read."""
    if module := sys.modules.get("llmtune.training.generation_eval"):  # else nothing in this process has trained yet
        module.SAMPLE_TOKENS = SAMPLE_TOKENS  # type: ignore[attr-defined]
    if module := sys.modules.get("llmtune.training.following"):
        module.WATCHED_TOKENS = SAMPLE_TOKENS  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def vision_folder(tmp_path_factory: pytest.TempPathFactory, _own_cache: None) -> Callable[[str], Path]:
    """kind -> the folder of a tiny random model that sees, made once."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            _need_image_processors()
            made[kind] = make_vision(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with red.png (64 x 48), blue.png (48 x 100) and an upright photograph that lies on its side."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    Image.new("RGB", (64, 48), (220, 20, 20)).save(folder / "red.png")
    Image.new("RGB", (48, 100), (20, 20, 220)).save(folder / "blue.png")
    lying = Image.new("RGB", (160, 80), (20, 200, 20))
    exif = lying.getexif()
    exif[0x0112] = 6
    lying.save(folder / "turned.jpg", exif=exif)
    return folder


def _need_image_processors() -> None:
    from transformers import AutoImageProcessor

    try:
        AutoImageProcessor.from_pretrained  # noqa: B018
    except ImportError:
        pytest.skip("this version of transformers reads images with torchvision only, which is not installed")
