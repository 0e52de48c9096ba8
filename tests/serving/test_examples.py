"""examples/serve runs as its README says, against a server that its own script starts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ..waiting import SECONDS
from .test_load import wait_for

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples/serve"


@pytest.fixture(scope="module")
def url(tuned, tmp_path_factory):
    """`llmtune` of the script is this copy."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "llmtune").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llmtune "$@"\n')
    (folder / "llmtune").chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "LLMTUNE_API_KEY": "s3cret"}
    command = ["bash", str(EXAMPLES / "serve.sh"), str(tuned), "--port", "0", "--host", "0.0.0.0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert server.stderr is not None
    found = next(line.split(" at ")[1].split("/v1")[0] for line in server.stderr if line.startswith("Serving "))
    wait_for(found)
    threading.Thread(target=server.stderr.read, daemon=True).start()
    yield found
    server.terminate()
    assert server.wait(SECONDS) == 0


def run(script: str, url: str, *words: str, key: str = "s3cret") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / script), *words, "--url", url]
    environment = os.environ | {"LLMTUNE_API_KEY": key}
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)


def test_the_requests_client_streams(url):
    done = run("requests_client.py", url, "question 2")
    assert done.returncode == 0, done.stderr
    assert "whole:    answer 2!" in done.stdout
    assert "streamed: answer 2!" in done.stdout


def test_the_openai_client_chats(url):
    done = run("openai_client.py", url, "question 2", "question 4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("user:      question 2\nassistant: answer 2!\nuser:      question 4\nassistant: ")
    refused = run("openai_client.py", url, "question 2", key="wrong")
    assert refused.returncode == 1
    assert refused.stderr.startswith("AuthenticationError")


@pytest.mark.parametrize("words", [[], ["--tool_choice", "required"]])
def test_a_tool_loop_with_a_model_not_trained_on_calls(url, words):
    """It ends in words, or after its rounds. What a model that has learned it does: test_tool_calls."""
    done = run("tool_loop.py", url, "question 2", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("user:      question 2\n")
    assert "\nassistant: " in done.stdout or "No answer after 5 rounds" in done.stdout


def test_a_loop_with_a_model_that_calls(tool_client):
    """The weather of a city is asked for, told, and said."""
    url = str(tool_client.base_url).removesuffix("/v1/")
    done = run("tool_loop.py", url, "weather in Paris")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "user:      weather in Paris",
        'call:      get_weather({"city": "Paris"})',
        "result:    cloudy, 14 degrees",
        "assistant: Paris: cloudy, 14 degrees",
    ]
