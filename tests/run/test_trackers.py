"""--report_to: the trackers' own packages, without a network; nothing secret is written anywhere."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmtune import SftArguments, sft
from llmtune.errors import MissingPackageError, UsageError
from llmtune.run.resolved import need_trackers

from .. import prepared

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


def test_unknown_or_missing_trackers_are_refused():
    with pytest.raises(UsageError, match="--report_to tensorbord: expected tensorboard, wandb"):
        SftArguments(model_type="llmtune-tiny", report_to=["tensorbord"])


@pytest.mark.parametrize("name", ["wandb", "swanlab", "mlflow", "trackio"])
def test_a_missing_tracker_is_named_with_its_extra(monkeypatch, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(MissingPackageError, match=rf"--report_to {name} needs {name}.*pip install 'llmtune\[{name}\]'"):
        need_trackers([name])
    with pytest.raises(MissingPackageError, match="pip install tensorboardX"):
        need_trackers(["tensorboard"])


def test_tensorboard_events_are_in_the_run_folder(tmp_path):
    folder = run(tmp_path, "tensorboard")
    assert list(folder.glob("runs/**/events.*"))
    check_no_secret(folder)


def test_tensorboardx_writes_them_where_tensorboard_is_not_installed(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    (file,) = run(tmp_path, "tensorboard").glob("runs/**/events.*")
    assert b"train/loss" in file.read_bytes()


def test_report_to_none_writes_no_events(tmp_path):
    assert not (run(tmp_path, "none") / "runs").exists()


@pytest.mark.slow
def test_mlflow_files_are_in_the_run_folder(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    folder = run(tmp_path, "mlflow")
    assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # to read it
    found = mlflow.MlflowClient(str(folder / "mlruns")).search_experiments()
    (experiment,) = [one for one in found if one.name == "llmtune"]
    (tracked,) = mlflow.MlflowClient(str(folder / "mlruns")).search_runs([experiment.experiment_id])
    assert tracked.info.run_name == folder.name
    assert tracked.data.metrics["loss"] > 0
    assert "MLFLOW_TRACKING_URI" not in os.environ
    check_no_secret(folder)


@pytest.mark.slow
def test_wandb_files_are_in_the_run_folder(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # of a test before it in this process, whose service may have ended
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 8 + SECRET + "0" * 12)
    folder = run(tmp_path, "wandb")
    wandb.teardown()  # as the end of the process does: its service has written all
    (data,) = folder.glob("wandb/offline-run-*/*.wandb")
    assert b"train/loss" in data.read_bytes()
    check_no_secret(folder)


@pytest.mark.slow
def test_swanlab_files_are_in_the_run_folder(tmp_path, monkeypatch):
    pytest.importorskip("swanlab")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    folder = run(tmp_path, "swanlab")
    assert [file for file in (folder / "swanlab").rglob("*") if file.is_file()]
    check_no_secret(folder)


SECRETS = {
    "--hub_token": "hub-0123456789abcdef",
    "--api_key": "key-0123456789abcdef",
    "--hf_hub_token": "hf_0123456789",
}


@pytest.mark.parametrize("flag", SECRETS)
@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
def test_a_typed_secret_leaves_the_command_line_and_arrives(monkeypatch, flag, joined):
    from llmtune.arguments.secrets import hidden_secret, hide_secrets

    secret = SECRETS[flag]
    typed = [f"{flag}={secret}"] if joined else [flag.replace("_", "-"), secret]
    monkeypatch.setattr("sys.argv", ["llmtune", "sft", "--dataset", "a", *typed, "--max_steps", "3"])
    for name in ("HUB_TOKEN", "API_KEY"):
        monkeypatch.setenv(f"LLMTUNE_HIDDEN_{name}", "")
    hide_secrets()
    assert sys.argv == ["llmtune", "sft", "--dataset", "a", "--max_steps", "3"]
    assert hidden_secret("api_key" if flag == "--api_key" else "hub_token") == secret


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "swanlab", "mlflow"])
def test_no_tracker_keeps_a_typed_secret(tmp_path, monkeypatch, tracker):
    """As a command: what a tracker finds in `sys.argv`, the environment and the settings is written, and synced."""
    pytest.importorskip(tracker)
    for name in ("WANDB_MODE", "SWANLAB_MODE"):
        monkeypatch.setenv(name, "offline")
    planted = {"HF_TOKEN": "hf_env0123456789ab", "MODELSCOPE_API_TOKEN": "ms-env0123456789ab"}
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    started = prepared.start(
        *(*prepared.LLMTUNE, "sft", "--model_type", "llmtune-tiny", "--dataset", "tiny-qa#8", "--max_steps", "2"),
        *("--batch_size", "2", "--gradient_accumulation_steps", "1", "--eval_strategy", "no"),
        *("--report_to", tracker, "--output_dir", str(tmp_path / "output"), "--hub_token", SECRET),
        folder=tmp_path,
    )  # fmt: skip
    assert started.wait() == 0, started.said()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 10
    for value in (SECRET, *planted.values()):
        assert not [file for file in files if value.encode() in file.read_bytes()]


@pytest.mark.slow
def test_no_list_of_processes_shows_a_typed_secret(tmp_path):
    """Nor of those that torchrun starts."""
    line = [sys.executable, "-m", "llmtune", "sft", "--model_type", "llmtune-tiny", "--dataset", "tiny-qa#8"]
    line += ["--max_steps", "1", "--nproc", "2", "--output_dir", str(tmp_path), "--hub_token", SECRET]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    shown, said = set(), ""
    for text in process.stdout:
        said += text
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = file.read_bytes()
                if str(tmp_path).encode() in words:
                    shown.add(words)
    assert process.wait() == 0, said
    assert any(b"LOCAL" in words or b"processes" in words or b"llmtune" in words for words in shown)
    assert not [words for words in shown if SECRET.encode() in words]


def test_a_secret_in_train_args_is_refused():
    with pytest.raises(UsageError, match="--train_args hub_token"):
        SftArguments(model_type="llmtune-tiny", train_args=[f"hub_token={SECRET}"])
