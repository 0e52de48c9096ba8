"""vLLM in this process: its calls and answers, by a stand-in of the package, which no machine of the tests has."""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llmtune.errors import MissingPackageError, RolloutError, UsageError
from llmtune.rollouts.engine import RolloutRequest
from llmtune.rollouts.vllm import VllmEngine

ASKED = [RolloutRequest((5, 6), (1, 0), 4), RolloutRequest((7,), (1, 1), 2, stop=("Observation:",))]


class Llm:
    """Answers each prompt with its ids plus 1, and notes what it was asked."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.calls, self.state, self.reason = settings, [], [], "stop"

    def sleep(self, level: int) -> None:
        self.state.append(f"sleep {level}")

    def wake_up(self) -> None:
        self.state.append("awake")

    def generate(self, prompts: Any, params: Any, *, lora_request: Any, use_tqdm: bool) -> list[Any]:
        assert self.state[-1] == "awake"
        self.calls.append((prompts, params, lora_request))
        ids = [[one + 1 for one in prompt["prompt_token_ids"]] for prompt in prompts]
        return [
            SimpleNamespace(outputs=[SimpleNamespace(
                token_ids=one, finish_reason=self.reason,
                logprobs=[{token: SimpleNamespace(logprob=-token / 10)} for token in one],
            )])
            for one in ids
        ]  # fmt: skip


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    package, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    package.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    package.LLM, package.SamplingParams = Llm, lambda **values: values  # type: ignore[attr-defined]
    request.LoRARequest = lambda *values: values  # type: ignore[attr-defined]
    for name, module in (("vllm", package), ("vllm.lora", lora), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)
    return VllmEngine(
        tmp_path, save_adapter=lambda folder: folder.mkdir(parents=True), folder=tmp_path / "adapters", rank=4,
        stop_token_ids=[2], stop=["</s>"], temperature=0.7, max_rows=3,
    )  # fmt: skip


def test_ids_in_and_ids_out_with_their_log_probabilities(engine):
    found = engine.sample(ASKED)
    assert [one.ids for one in found] == [[6, 7], [8]]
    assert [one.logps for one in found] == [[-0.6, -0.7], [-0.8]]
    ((prompts, params, adapter),) = engine._llm.calls
    assert prompts == [{"prompt_token_ids": [5, 6]}, {"prompt_token_ids": [7]}]
    assert adapter is None
    assert [one["max_tokens"] for one in params] == [4, 2]
    assert [one["stop"] for one in params] == [["</s>"], ["</s>", "Observation:"]]
    assert len({one["seed"] for one in params}) == 2
    assert params[0]["temperature"] == 0.7
    assert engine._llm.state == ["sleep 1", "awake", "sleep 1"]
    assert engine._llm.settings["enable_prefix_caching"] is False
    assert not engine.is_exact


def test_each_update_is_a_new_adapter_and_the_former_one_is_removed(engine, tmp_path):
    for step in (0, 3):
        engine.update(step)
        engine.sample(ASKED[:1])
        assert engine._llm.calls[-1][2] == (f"step-{step}", step + 1, str(tmp_path / "adapters" / f"step-{step}"))
        assert [one.name for one in (tmp_path / "adapters").iterdir()] == [f"step-{step}"]


def test_a_response_that_was_broken_off_is_an_error_and_vllm_sleeps_again(engine):
    engine._llm.reason = "abort"
    with pytest.raises(RolloutError, match="'abort'"):
        engine.sample(ASKED)
    assert engine._llm.state[-1] == "sleep 1"


def test_without_vllm_its_package_is_named(tmp_path):
    with pytest.raises(MissingPackageError, match="vllm"):
        VllmEngine(tmp_path, save_adapter=lambda _: None, folder=tmp_path, rank=8, stop_token_ids=[])


def test_it_takes_lora_in_one_process():
    from llmtune import GrpoArguments

    settings: dict[str, Any] = {
        "model_type": "llmtune-tiny", "dataset": ["tiny-sums"], "rewards": ["accuracy"], "rollout_engine": "vllm",
    }  # fmt: skip
    GrpoArguments(**settings)
    for more in ({"sft_type": "full"}, {"nproc": 2}):
        with pytest.raises(UsageError, match="LoRA in one process"):
            GrpoArguments(**settings, **more)
