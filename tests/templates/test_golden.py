"""Every template still makes the text, ids and labels that were reviewed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from llmtune import TEMPLATE_MAPPING

FOLDER = Path(__file__).parents[1] / "golden"
WRITTEN = sorted(key for key, info in TEMPLATE_MAPPING.items() if not info.from_tokenizer)


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_generator", FOLDER / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_template_has_a_file():
    assert len(WRITTEN) == 52
    assert {file.stem for file in FOLDER.glob("*.json")} == set(WRITTEN)


@pytest.mark.parametrize("key", WRITTEN)
def test_encoding_equals_the_golden_file(key, generator):
    assert generator.text_of(key) == (FOLDER / f"{key}.json").read_text(encoding="utf-8")
