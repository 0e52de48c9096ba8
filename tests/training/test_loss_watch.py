"""A loss that is NaN, infinite or diverged is reported with its samples before the weights change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtune import SftArguments, sft
from llmtune.errors import TrainingError
from llmtune.training import callbacks as loss_watch
from llmtune.training.callbacks import LossWatch

ROWS = [{"query": f"question {number}", "response": f"answer {number}"} for number in range(12)]
RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 1e-3,
    "logging_steps": 1, "eval_strategy": "no", "save_steps": 2, "dataset_test_ratio": 0.0,
}  # fmt: skip


@pytest.fixture
def data(tmp_path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


@pytest.fixture
def broken_at(monkeypatch):
    """Makes the loss of the sample of a row that number."""

    def install(row: int, value: float) -> None:
        add = LossWatch.add

        def broken(self, loss, samples):
            if row in samples.tolist():
                loss = loss * value
                for parameter in broken.model.parameters():
                    if parameter.grad is not None:
                        parameter.grad.fill_(value)
            add(self, loss, samples)

        begin = LossWatch.on_train_begin

        def remember(self, *args, model=None, **kwargs):
            broken.model = model
            return begin(self, *args, model=model, **kwargs)

        monkeypatch.setattr(LossWatch, "add", broken)
        monkeypatch.setattr(LossWatch, "on_train_begin", remember)

    return install


def test_stops_with_the_rows(tmp_path, data, broken_at):
    broken_at(7, float("nan"))
    with pytest.raises(TrainingError) as told:
        sft(SftArguments(**RUN, dataset=[str(data)], output_dir=str(tmp_path / "out")))
    assert "is NaN or infinite (nan)" in str(told.value)
    assert "row 7 ('question 7')" in str(told.value)
    assert "--on_nan skip" in str(told.value)
    assert str(told.value).count("row ") == 2  # a batch holds two


def test_skips_and_goes_on(tmp_path, data, broken_at, capsys):
    broken_at(7, float("nan"))
    result = sft(SftArguments(**RUN, dataset=[str(data)], on_nan="skip", output_dir=str(tmp_path / "out")))
    assert "The step is skipped" in capsys.readouterr().err
    assert (result.output_dir / "checkpoint-6").is_dir()
    assert "| steps skipped (NaN/inf loss) | 1 (--on_nan skip) |" in (result.output_dir / "report.md").read_text()
    weights = torch.load(result.output_dir / "checkpoint-6/optimizer.pt", weights_only=True)["state"]
    assert all(torch.isfinite(state["exp_avg"]).all() for state in weights.values())


def test_a_loss_that_ran_away(tmp_path, data, broken_at):
    broken_at(3, 1e4)
    with pytest.raises(TrainingError, match="has diverged"):
        sft(SftArguments(**RUN, dataset=[str(data)], output_dir=str(tmp_path / "out")))


def test_skipping_ends_where_nothing_works_any_more(tmp_path, data, broken_at, monkeypatch):
    monkeypatch.setattr(loss_watch, "SKIPS_IN_A_ROW", 3)
    watch = LossWatch("skip", 1000, lambda samples: str(list(samples)))
    model = torch.nn.Linear(1, 1)
    state = type("State", (), {"global_step": 0})()
    args = type("Args", (), {"fp16": False})()
    for number in range(3):
        watch.add(torch.tensor(float("inf")), torch.tensor([number]))
        if number < 2:
            watch.on_pre_optimizer_step(args, state, None, model=model)
    with pytest.raises(TrainingError):
        watch.on_pre_optimizer_step(args, state, None, model=model)
    assert watch.num_skipped == 2
