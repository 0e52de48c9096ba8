"""A hub on the loopback, and caches of its own for each test."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

from llmtune.models.tiny import tiny_folder


def _server() -> ModuleType:
    spec = importlib.util.spec_from_file_location("loopback_server", Path(__file__).with_name("server.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


server = _server()


@pytest.fixture(scope="module")
def tiny_files() -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in tiny_folder().iterdir() if path.is_file()}
    return files | {"pytorch_model.bin": b"the same weights, pickled", "original/consolidated.00.pth": b"again"}


@pytest.fixture
def environment(tmp_path, monkeypatch) -> Path:
    for name, folder in (("HF_HOME", "hf"), ("MODELSCOPE_CACHE", "ms"), ("LLMTUNE_CACHE", "own")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.delenv("LLMTUNE_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the clients wait between attempts
    monkeypatch.setattr(threading.Event, "wait", _without_waiting(threading.Event.wait))
    return tmp_path


def _without_waiting(wait):
    return lambda event, timeout=None: wait(event, None if timeout is None else min(timeout, 0.01))


@pytest.fixture
def hub(environment, monkeypatch, tiny_files):
    rows = {"train.csv": b"query,response\na,b\n"}
    repos = {("model", "owner/tiny"): dict(tiny_files), ("dataset", "owner/rows"): rows}
    with server.loopback_hub(repos=repos) as running:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", running.url)
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running
