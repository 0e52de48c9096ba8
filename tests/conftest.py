"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: its threads and those of other processes would fight
os.environ["LLMTUNE_PLUGINS"] = ""
os.environ["LLMTUNE_OFFLINE"] = "1"  # no test asks a hub, but those that bring one of their own

import pytest
from hypothesis import settings

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
