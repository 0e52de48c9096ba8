"""What is said once a process is said again in each test."""

from __future__ import annotations

import pytest

from llmtune.utils import logging as llmtune_logging


@pytest.fixture(autouse=True)
def say_everything_again(monkeypatch):
    monkeypatch.setattr(llmtune_logging, "_said", set())
