"""Rows with tools, from the file to the answer: real data of glaive and of Qwen, in each family's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtune import InferArguments, SftArguments, evaluate, infer, sft
from llmtune.arguments.evaluate import EvaluateArguments

TOOL = {"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}
PLACES = ("Oslo", "Bonn")


def quick(dataset: Path, folder: Path, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "model_type": "llmtune-tiny", "sft_type": "full", "dataset": [str(dataset)], "output_dir": str(folder),
        "batch_size": 2, "gradient_accumulation_steps": 1, "max_steps": 2, "logging_steps": 1, "eval_strategy": "no",
        "max_length": 1024, "truncation_strategy": "delete", "report_to": ["none"],
    }  # fmt: skip
    return sft(SftArguments(**(settings | options)))


@pytest.mark.medium
@pytest.mark.parametrize(("template", "tool_format"), [("qwen2.5", None), ("chatml", None), ("qwen1.5", "react")])
def test_glaive_tool_calls_train(template, tool_format, assets, tmp_path):
    rows = json.loads((assets / "data/glaive_toolcall_en_demo.json").read_text(encoding="utf-8"))
    called = [row for row in rows if row["conversations"][1]["from"] == "function_call"]
    short = sorted(called, key=lambda row: len(json.dumps(row)))[:4]
    file = tmp_path / "glaive.json"
    file.write_text(json.dumps(short), encoding="utf-8")
    result = quick(file, tmp_path, template_type=template, tool_format=tool_format)
    answers = infer(
        InferArguments(
            ckpt_dir=str(result.last_checkpoint),
            val_dataset=[str(file)],
            show_dataset_sample=2,
            max_new_tokens=8,
            do_sample=False,
            max_length=-1,
        )
    )
    assert InferArguments(ckpt_dir=str(result.last_checkpoint), eval_human=True).tool_format == tool_format
    wrapped = [{"type": "function", "function": tool} for tool in json.loads(short[0]["tools"])]
    assert answers[0]["tools"] == wrapped
    roles = [message["role"] for message in answers[0]["messages"]]
    assert roles[:3] == ["user", "assistant", "tool"]
    assert answers[0]["label"] == short[0]["conversations"][-1]["value"]


@pytest.mark.slow
@pytest.mark.parametrize("template", ["chatml", "llama3.1"])  # Hermes: tests/serving/test_tool_calls.py
def test_a_call_is_learned(template, tmp_path):
    """A few rows by heart: the call comes back as a call, and what follows it as an answer."""
    rows = []
    for place in PLACES:
        asked = {"role": "user", "content": f"Sky in {place}?"}
        call = {"role": "assistant", "tool_calls": [{"name": "sky", "arguments": {"place": place}}]}
        told = {"role": "tool", "content": f"{place} is blue"}
        answer = {"role": "assistant", "content": f"Blue in {place}!"}
        rows.append({"tools": [TOOL], "messages": [asked, call]})
        rows.append({"tools": [TOOL], "messages": [asked, call, told, answer]})
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    learns = {"batch_size": 4, "max_steps": 40, "learning_rate": 3e-3, "dataset_test_ratio": 0}
    result = quick(file, tmp_path, template_type=template, **learns)
    checkpoint = str(result.last_checkpoint)
    greedy = {"val_dataset": [str(file)], "max_new_tokens": 80, "do_sample": False}
    answers = infer(InferArguments(ckpt_dir=checkpoint, max_length=-1, **greedy))
    calls, texts = answers[::2], answers[1::2]
    assert [one["tool_calls"] for one in calls] == [[{"name": "sky", "arguments": {"place": p}}] for p in PLACES]
    assert [one["content"] for one in texts] == [f"Blue in {place}!" for place in PLACES]
    output = str(tmp_path / "eval")
    found = evaluate(EvaluateArguments(ckpt_dir=[checkpoint], metrics=["exact_match"], output_dir=output, **greedy))
    (scores,) = found.values()
    assert scores["exact_match"] == 100


@pytest.mark.medium
def test_react_rows_in_plain_text_train_as_they_are(assets, tmp_path):
    """Qwen's own file holds the whole exchange as text: it is learned as it stands."""
    file = assets / "data/qwen_react_function_call.json"
    result = quick(file, tmp_path, template_type="chatml", dataset_test_ratio=0, max_length=2048)
    (answer, *_) = infer(
        InferArguments(
            ckpt_dir=str(result.last_checkpoint), val_dataset=[str(file)], show_dataset_sample=1, max_new_tokens=4,
            do_sample=False,
        )
    )  # fmt: skip
    assert answer["query"].startswith("Answer the following questions as best you can.")
    assert answer["label"].startswith("Thought: I need to google Jay Chou.")
    assert "tools" not in answer
