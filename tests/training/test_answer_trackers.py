"""The responses of a round reach the trackers of a run, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtune import GrpoArguments, grpo
from llmtune.training.answer_trackers import COLUMNS, as_markdown


def run(folder: Path, tracker: str) -> Path:
    (folder / "mine.py").write_text(
        "def size(completions, **kwargs):\n    return [len(text) for text in completions]\n"
    )
    args = GrpoArguments(
        model_type="llmtune-tiny", dataset=["tiny-sums#4"], rewards=[f"{folder / 'mine.py'}:size"], max_new_tokens=4,
        num_generations=2, batch_size=4, gradient_accumulation_steps=1, max_steps=2, logging_steps=1,
        eval_strategy="no", report_to=[tracker], output_dir=str(folder / "out"),
    )  # fmt: skip
    return grpo(args).output_dir


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_a_table_has_a_row_for_each_response_on_one_line():
    record = {"round": 3, "prompt": "a|b", "response": "one\ntwo" + "x" * 900, "reward": 0.123456}
    lines = as_markdown([record, record]).splitlines()
    assert len(lines) == 4
    assert lines[0] == f"| {' | '.join(COLUMNS)} |"
    assert "a\\|b" in lines[2]
    assert "one<br>two" in lines[2]
    assert "0.1235" in lines[2]
    assert len(lines[2]) < 600


@pytest.mark.medium
def test_tensorboard_has_the_responses_of_each_logged_step(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(tmp_path, "tensorboard")
    events = EventAccumulator(str(next(folder.glob("runs/**/events.*")).parent))
    events.Reload()
    found = events.Tensors("answers/text_summary")
    assert [one.step for one in found] == [1, 2]
    text = found[-1].tensor_proto.string_val[0].decode()
    last = [one for one in written(folder) if one["round"] == 1]
    assert all(one["prompt"] in text for one in last)


@pytest.mark.slow
def test_mlflow_has_them_as_files(tmp_path):
    pytest.importorskip("mlflow")
    folder = run(tmp_path, "mlflow")
    assert sorted(file.name for file in folder.rglob("step-*.md")) == ["step-1.md", "step-2.md"]


@pytest.mark.slow
def test_wandb_has_them_as_a_table(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = run(tmp_path, "wandb")
    wandb.teardown()
    tables = list(folder.rglob("answers*.table.json"))
    assert tables
    assert json.loads(tables[0].read_text())["columns"] == list(COLUMNS)
