"""Whole runs of grpo with the two tools of examples/serve: what they sample does not depend on how they compute."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmtune import GrpoArguments, grpo
from llmtune.checkpoint import numbered_checkpoints
from llmtune.errors import LlmtuneError, UsageError
from llmtune.rollouts.experience import FACTS_FILE, Experience
from llmtune.rollouts.own import OwnEngine

EXAMPLES = Path(__file__).parents[2] / "examples/serve"
TOOLS = [f"{EXAMPLES / 'tool_loop.py'}:{name}" for name in ("calculate", "get_weather")]
CALLS = (
    '<tool_call>\n{"name": "calculate", "arguments": {"expression": "2 * 3"}}\n</tool_call><|im_end|>',
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>',
)
REWARDS = '''
def calls(completions, messages, **kwargs):
    """Letters of the last turn, and more for results."""
    return [text.count("e") + sum(one["role"] == "tool" for one in turns) for text, turns in zip(completions, messages)]
'''
SECONDS = ("seconds", "time", "useful_tokens", "per_second", "memory", "flops", "tflops", "share", "epoch", "mfu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sys.path.insert(0, str(EXAMPLES))
    try:
        from tool_data import row
    finally:
        sys.path.remove(str(EXAMPLES))
    chance = random.Random(3)
    folder = tmp_path_factory.mktemp("tools")
    rows = [row(chance) for _ in range(12)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "mine.py").write_text(REWARDS)
    return folder


@pytest.fixture
def settings(place: Path) -> dict[str, Any]:
    return {
        "model_type": "llmtune-tiny", "template_type": "qwen2.5", "dataset": [str(place / "rows.jsonl")],
        "val_dataset_sample": 2, "rewards": [f"{place / 'mine.py'}:calls"], "tool_functions": TOOLS,
        "max_new_tokens": 200, "max_turns": 3, "num_generations": 2, "batch_size": 4, "gradient_accumulation_steps": 1,
        "max_steps": 3, "logging_steps": 1, "eval_steps": 3, "save_steps": 1, "learning_rate": 1e-3,
        "save_total_limit": -1, "only_save_model": False, "report_to": ["none"], "warmup_ratio": 0.0,
        "num_iterations": 2,
    }  # fmt: skip


@pytest.fixture
def run(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model that begins some of its turns with a call, and goes on as it likes: the tiny one makes none."""
    sample = OwnEngine.sample

    def begun(self: OwnEngine, requests: Any) -> Any:
        made = sample(self, [_short(one) for one in requests])
        for request, one in zip(requests, made, strict=True):
            # By what the draws depend on, and nothing else.
            which = (sum(request.seed) + request.num_drawn) % 4
            ids = self._template.tokenizer(CALLS[which], add_special_tokens=False)["input_ids"] if which < 2 else []
            if ids and len(ids) <= request.max_tokens:
                one.ids, one.logps, one.finish_reason = list(ids), [-1.0] * len(ids), "stop"
        return made

    def _short(request: Any) -> Any:
        return replace(request, max_tokens=min(request.max_tokens, 5))

    monkeypatch.setattr(OwnEngine, "sample", begun)

    def start(folder: str = "run", **options: Any) -> Path:
        return grpo(GrpoArguments(**(settings | {"output_dir": str(tmp_path / folder)} | options))).output_dir

    return start


def records(folder: Path) -> list[dict[str, Any]]:
    """The log, but for what depends on the clock."""
    lines = map(json.loads, (folder / "logging.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in line.items() if not any(word in name for word in SECONDS)}
        for line in lines
        if "train_loss" not in line
    ]


def turns(folder: Path) -> list[Any]:
    lines = map(json.loads, (folder / "answers.jsonl").read_text().splitlines())
    return [(line["round"], line["row"], line["turns"]) for line in lines]


@pytest.mark.medium
def test_a_run_calls_the_two_tools_and_learns_from_their_responses(run):
    folder = run()
    roles = [[turn["role"] for turn in one] for _, _, one in turns(folder)]
    assert any("tool" in one for one in roles)
    results = {turn["content"] for _, _, one in turns(folder) for turn in one if turn["role"] == "tool"}
    assert results == {"6", "cloudy, 14 degrees"}
    logged = [line for line in records(folder) if "tools/call_frequency" in line]
    assert logged
    assert all(line["tools/failure_frequency"] == 0 for line in logged)
    assert any(line.get("grad_norm", 0) > 0 for line in records(folder))
    assert "Tools: calculate, get_weather; up to 3 turns" in (folder / "report.md").read_text()
    found = Experience.load(folder / "checkpoint-1")
    masked = [one for one in found.responses() if one.messages and not one.sampled.all()]
    assert masked
    for one in found.responses():
        assert len(one.ids) <= 200
        assert len(one.old) == one.num_sampled


@pytest.mark.medium
@pytest.mark.parametrize("options", [{"rollout_batch_size": 1}, {"rollout_batch_size": 3}, {"share_prompt": "false"}])
def test_batches_and_layout_change_nothing_but_speed(options, run):
    ours, theirs = run("ours", **options), run("theirs")
    assert turns(ours) == turns(theirs)
    for mine, other in zip(records(ours), records(theirs), strict=True):
        assert mine == pytest.approx(other, rel=2e-5, abs=2e-5)


@pytest.mark.medium
def test_resumed_within_an_experience_equals_uninterrupted(run, settings):
    whole = run("whole", max_steps=4)
    expected, told = records(whole), turns(whole)
    checkpoint = numbered_checkpoints(whole)[0]
    assert (checkpoint / FACTS_FILE).is_file()
    grpo(GrpoArguments(**(settings | {"max_steps": 4, "resume_from_checkpoint": str(checkpoint)})))
    again = records(whole)[len(expected) :]
    assert [one for one in again if one["global_step"] > 1] == [one for one in expected if one["global_step"] > 1]
    assert turns(whole) == told


@pytest.mark.medium
def test_a_row_that_offers_more_than_there_is_is_refused(run, settings):
    with pytest.raises(UsageError, match=r"row \d+ of the training rows offers 'get_weather', which has no function"):
        run(tool_functions=TOOLS[:1])


@pytest.mark.medium
def test_a_template_without_a_tool_format_is_refused(run):
    with pytest.raises(LlmtuneError, match="has no tool format"):
        run(template_type="gemma")


@pytest.mark.medium
def test_rows_without_tools_offer_all_functions(run, place, tmp_path):
    rows = tmp_path / "plain.jsonl"
    rows.write_text("\n".join(json.dumps({"question": f"{a} + 1 = ?", "answer": str(a + 1)}) for a in range(8)))
    folder = run(dataset=[str(rows)], tool_functions=["calculate"], max_steps=1)
    assert "# Tools" in (folder / "report.md").read_text() or any(len(one) > 1 for _, _, one in turns(folder))
    contents = [turn["content"] for _, _, one in turns(folder) for turn in one if turn["role"] == "tool"]
    assert {"6"} & {*contents}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["calculates"], "Did you mean 'calculate'"),
        (["nothing.py"], "--tool_functions: there is no file nothing.py"),
        ([f"{EXAMPLES / 'tool_loop.py'}:nothing"], "there is no function 'nothing'. It has: calculate, get_weather"),
        (["calculate", TOOLS[0]], "both have a function 'calculate'"),
    ],
)
def test_specs_are_refused_before_anything_is_read(given, text, settings):
    with pytest.raises(LlmtuneError, match=text):
        GrpoArguments(**(settings | {"tool_functions": given}))
