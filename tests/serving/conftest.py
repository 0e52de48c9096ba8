"""Servers on free ports, over a tiny model that knows eight answers by heart."""

from __future__ import annotations

import json
import runpy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from llmtune import RmArguments, SftArguments, rm, sft
from llmtune.arguments.service import ServeArguments
from llmtune.serving.app import Server, load_service
from llmtune.utils.system import listen

from ..waiting import SECONDS, until

ENDLESS = {"2": -100.0, "0": -100.0}
"""A logit_bias with which the tiny model never stops by itself."""


TOOL_LOOP = Path(__file__).parents[2] / "examples/serve/tool_loop.py"
TOOLS: list[dict[str, Any]] = runpy.run_path(str(TOOL_LOOP))["TOOLS"]
"""calculate and get_weather."""
WEATHER = (("Paris", "cloudy, 14 degrees"), ("Rome", "nobody has told me of Rome"))


class Running:
    """A server in a thread of this process."""

    def __init__(self, args: ServeArguments) -> None:
        self.service = load_service(args)
        self.listener = listen(args.host, args.port)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.server = Server(self.service)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True)
        self.thread.start()
        until(lambda: self.server.started)

    def client(self, key: str = "none", **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)

    def close(self) -> None:
        self.service.batcher.refuse()
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()
        self.service.batcher.close()


@contextmanager
def running(args: ServeArguments) -> Iterator[Running]:
    server = Running(args)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def serving(_own_cache: None) -> Callable[..., Any]:
    """`with serving(flag=value, ...) as server:`."""
    return lambda **flags: running(ServeArguments(**{"port": 0, "max_new_tokens": 24, "do_sample": False} | flags))


def train(folder: Path, rows: list[dict[str, Any]], **flags: Any) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"max_steps": 90, "learning_rate": 2e-3, "batch_size": 8} | flags
    found = sft(
        SftArguments(
            model_type="llmtune-tiny", dataset=[str(folder / "rows.jsonl")], dataset_test_ratio=0, eval_strategy="no",
            gradient_accumulation_steps=1, output_dir=str(folder), system="be short", report_to=["none"], **options,
        )
    )  # fmt: skip
    assert found.last_checkpoint is not None
    return found.last_checkpoint


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory, _own_cache: None) -> Path:
    """Whole weights: `question i` -> `answer i!`."""
    rows = [{"query": f"question {i}", "response": f"answer {i}!"} for i in range(8)]
    return train(tmp_path_factory.mktemp("tuned"), rows, sft_type="full")


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory, tuned: Path) -> dict[str, Path]:
    """Two LoRA over it: `question i` -> `red i.` and `blue i.`."""
    found = {}
    for color in ("red", "blue"):
        rows = [{"query": f"question {i}", "response": f"{color} {i}."} for i in range(8)]
        found[color] = train(
            tmp_path_factory.mktemp(color), rows, model_id_or_path=str(tuned), lora_target_modules=["ALL"],
            lora_rank=16, learning_rate=1e-2, max_steps=60,
        )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def server(serving: Any, tuned: Path) -> Iterator[Running]:
    with serving(ckpt_dir=str(tuned)) as found:
        yield found


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return server.client()


@pytest.fixture(scope="session")
def rewards(tmp_path_factory: pytest.TempPathFactory, _own_cache: None) -> Path:
    made = rm(
        RmArguments(
            model_type="llmtune-tiny", dataset=["tiny-pairs#24"], dataset_test_ratio=0, batch_size=4, max_steps=6,
            gradient_accumulation_steps=1, learning_rate=5e-3, report_to=["none"],
            output_dir=str(tmp_path_factory.mktemp("rewards")),
        )
    )  # fmt: skip
    assert made.last_checkpoint is not None
    return made.last_checkpoint


@pytest.fixture(scope="module")
def scored(serving: Any, rewards: Path) -> Iterator[Running]:
    """A served reward model."""
    with serving(ckpt_dir=str(rewards)) as found:
        yield found


@pytest.fixture(scope="session")
def tool_client(tmp_path_factory: pytest.TempPathFactory, _own_cache: None) -> Iterator[openai.OpenAI]:
    """A server whose model has learned by heart to call for the weather of two cities, and to say what came back."""
    rows = []
    for city, weather in WEATHER:
        call = {"function": {"name": "get_weather", "arguments": {"city": city}}}
        asked = [{"role": "user", "content": f"weather in {city}"}, {"role": "assistant", "tool_calls": [call]}]
        answered = [{"role": "tool", "content": weather}, {"role": "assistant", "content": f"{city}: {weather}"}]
        rows.append({"messages": [*asked, *answered], "tools": TOOLS})
    folder = train(
        tmp_path_factory.mktemp("tools"),
        rows,
        sft_type="full",
        template_type="qwen2.5",
        max_steps=80,
        batch_size=2,
        loss_on="all",
    )
    with running(ServeArguments(ckpt_dir=str(folder), port=0, max_new_tokens=60, do_sample=False)) as server:
        yield server.client()
