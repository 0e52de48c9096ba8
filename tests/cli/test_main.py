"""The command: which status it exits with, what it says, and where."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from llmtune import __version__
from llmtune.cli import main as main_module
from llmtune.cli.main import COMMANDS, main
from llmtune.errors import CheckpointError

TINY = ["--model_type", "llmtune-tiny"]


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"], ["help"]])
def test_help_lists_every_command(argv, capsys):
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "usage: llmtune COMMAND" in out
    assert all(f"\n  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("command", ["sft", "infer"])
def test_help_of_a_command(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert not caught.value.code
    assert f"usage: llmtune {command}" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["list", "--help"], ["show", "-h"], ["--version"], ["list", "models"]])
def test_other_ways_to_succeed(argv, capsys):
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert captured.out
    assert captured.err == ""


def test_version_is_the_packages(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"llmtune {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["sfft"], 2, "Unknown command 'sfft'. Did you mean 'sft'?"),
        (["quux"], 2, "Unknown command 'quux'. Commands: sft, "),
        (["sft", *TINY, "--batchsize", "2"], 2, "Unknown flag --batchsize. Did you mean --batch_size"),
        (["sft", "--model_type", "llmtune-tny"], 2, "Did you mean 'llmtune-tiny'?"),
        (["sft", "--model_type", "org/name"], 2, "--model_id_or_path org/name"),
        (["sft", *TINY, "--template_type", "chatlm"], 2, "or 'chatml'?"),
        (["sft", *TINY, "--seed", "x"], 2, "--seed: invalid int value: 'x'."),
        (["sft", *TINY, "--sft_type", "half"], 2, "--sft_type: invalid choice: 'half'"),
        (["sft", *TINY, "--dataset_test_ratio", "2", "--batch_size", "0"], 2, "--dataset_test_ratio"),
        (["sft", "rows.jsonl"], 2, "flags begin with --"),
        (["list"], 2, "Say what to list"),
        (["list", "all"], 2, "Say what to list"),
        (["show", "model"], 2, "llmtune show model|dataset|template|tool_format|metric|loss|reward|tool KEY"),
        (["show", "model", "llmtune-tyni"], 2, "Did you mean 'llmtune-tiny'"),
        (["infer", "--ckpt_dir", "/no/such/folder"], 1, "no checkpoint folder /no/such/folder"),
    ],
)
def test_errors_are_one_line_on_stderr_with_an_exit_status(argv, status, said, capsys):
    assert main(argv) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("llmtune: ")
    assert said in captured.err
    assert "Traceback" not in captured.err


def test_all_problems_at_once(capsys):
    main(["sft", *TINY, "--dataset_test_ratio", "2", "--batch_size", "0"])
    said = capsys.readouterr().err
    assert "--dataset_test_ratio" in said
    assert "--batch_size" in said


def test_debug_shows_the_traceback():
    with pytest.raises(CheckpointError):
        main(["infer", "--ckpt_dir", "/no/such/folder", "--debug"])


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        (ValueError("first line\nsecond"), 1, "llmtune: ValueError: first line. Add --debug"),
        (
            FileNotFoundError(2, "No such file or directory", "a.json"),
            1,
            "llmtune: No such file or directory (a.json).",
        ),
        (KeyboardInterrupt(), 130, "llmtune: interrupted."),
    ],
)
def test_faults_of_a_command(fault, status, said, capsys, monkeypatch):
    def run(argv):
        raise fault

    monkeypatch.setattr(main_module.importlib, "import_module", lambda name: types.SimpleNamespace(run=run))
    assert main(["check"]) == status
    assert said in capsys.readouterr().err


def test_reader_that_has_seen_enough():
    done = subprocess.run(
        f"set -o pipefail; {sys.executable} -m llmtune list models | head -n 1",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert done.stderr == ""


def test_exit_status_of_the_process(tmp_path: Path):
    statuses = {("--help",): 0, ("sft", "--help"): 0, ("sfft",): 2, ("infer", "--ckpt_dir", str(tmp_path / "x")): 1}
    for argv, status in statuses.items():
        assert subprocess.run([sys.executable, "-m", "llmtune", *argv], capture_output=True).returncode == status
