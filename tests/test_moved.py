"""Modules of 0.4 are found under their old names, as the very modules of today, with a warning."""

from __future__ import annotations

import importlib

import pytest

from llmtune.moved import MOVED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_is_the_module_of_today(old):
    with pytest.warns(DeprecationWarning, match=f"llmtune.{old} is llmtune.{MOVED[old]} since"):
        importlib.import_module(f"llmtune.{old}")
    assert importlib.import_module(f"llmtune.{old}") is importlib.import_module(f"llmtune.{MOVED[old]}")
