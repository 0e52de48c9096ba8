"""--report_to: the trackers' own packages, without a network; nothing secret is written anywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from llmtune import SftArguments, sft
from llmtune.errors import MissingPackageError, UsageError
from llmtune.training.trackers import need_trackers

SECRET = "tok-0123456789abcdef"
RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-qa#8"], "max_steps": 2, "batch_size": 2, "logging_steps": 1,
    "gradient_accumulation_steps": 1, "eval_strategy": "no", "hub_token": SECRET,
}  # fmt: skip


def run(tmp_path: Path, *report_to: str) -> Path:
    return sft(SftArguments(**RUN, output_dir=str(tmp_path), report_to=list(report_to))).output_dir


def check_no_secret(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 10
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]


def test_unknown_and_missing():
    with pytest.raises(UsageError, match="--report_to tensorbord: expected tensorboard, wandb"):
        SftArguments(model_type="llmtune-tiny", report_to=["tensorbord"])
    with pytest.raises(MissingPackageError, match="pip install trackio"):
        need_trackers(["trackio"])  # nothing here installs it: it brings a web server


def test_tensorboard(tmp_path):
    folder = run(tmp_path, "tensorboard")
    assert list(folder.glob("runs/**/events.*"))
    check_no_secret(folder)


def test_none(tmp_path):
    assert not (run(tmp_path, "none") / "runs").exists()


@pytest.mark.slow
def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = run(tmp_path, "mlflow")
    found = mlflow.MlflowClient(str(folder / "mlruns")).search_experiments()
    (experiment,) = [one for one in found if one.name == "llmtune"]
    (tracked,) = mlflow.MlflowClient(str(folder / "mlruns")).search_runs([experiment.experiment_id])
    assert tracked.info.run_name == folder.name
    assert tracked.data.metrics["loss"] > 0
    assert "MLFLOW_TRACKING_URI" not in os.environ
    check_no_secret(folder)


@pytest.mark.slow
def test_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 8 + SECRET + "0" * 12)
    folder = run(tmp_path, "wandb")
    wandb.teardown()  # as the end of the process does: its service has written all
    (data,) = folder.glob("wandb/offline-run-*/*.wandb")
    assert b"train/loss" in data.read_bytes()
    check_no_secret(folder)


@pytest.mark.slow
def test_swanlab(tmp_path, monkeypatch):
    pytest.importorskip("swanlab")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    folder = run(tmp_path, "swanlab")
    assert [file for file in (folder / "swanlab").rglob("*") if file.is_file()]
    check_no_secret(folder)
