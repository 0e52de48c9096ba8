"""A tuned checkpoint, and the page that shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmtune.utils.system import free_port

from ..waiting import SECONDS, until


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA checkpoint of a few steps, in the folder of its run."""
    from llmtune import SftArguments, sft

    folder = tmp_path_factory.mktemp("tuned")
    rows = folder / "rows.jsonl"
    answer = "very " * 40 + "long"  # long enough to be seen while it is written
    rows.write_text("".join(json.dumps({"query": f"q{n}", "response": answer}) + "\n" for n in range(32)))
    result = sft(
        SftArguments(
            model_type="llmtune-tiny",
            dataset=[str(rows)],
            dataset_test_ratio=0.1,
            output_dir=str(folder / "output"),
            max_steps=8,
            batch_size=8,
            gradient_accumulation_steps=1,
            learning_rate=1e-2,
            logging_steps=2,
            eval_steps=4,
            save_steps=8,
        )
    )
    assert result.last_checkpoint is not None
    return Path(result.last_checkpoint)


@pytest.fixture(scope="session")
def start_page() -> Iterator[Callable[..., str]]:
    """(flags) -> the address of a page that runs till the session's end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*flags: str, **environment: str) -> str:
        port = free_port("127.0.0.1", 0)
        command = [sys.executable, "-m", "llmtune", "web", "--port", str(port), *flags]
        started.append(subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL))
        address = f"http://127.0.0.1:{port}"
        until(lambda: _answers(address))
        return address

    yield start
    for process in started:
        process.terminate()
        process.wait(SECONDS)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/_stcore/health", timeout=2).close()
    except OSError:
        return False
    return True
