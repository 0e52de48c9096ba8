"""`llmtune launch`: what it prints, writes, submits and refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmtune.cli.main import main

SFT = ["--", "sft", "--model_type", "llmtune-tiny", "--dataset", "tiny-qa"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("spelling", ["--dry-run", "--dry_run", "--dry_run=true"])
def test_dry_run_prints_and_writes_nothing(spelling, capsys, tmp_path):
    assert main(["launch", "--slurm", spelling, *SFT]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("#!/bin/bash\n# llmtune-tiny: llmtune sft on 1 machine with 1 GPU.")
    assert captured.err == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [["--slurm"], ["--sky", "--accelerator", "A100"], ["--ray"]])
def test_output_is_what_is_printed(flags, capsys, tmp_path):
    assert main(["launch", *flags, "--dry-run", "--output", "jobs/one", *SFT]) == 0
    assert (tmp_path / "jobs/one").read_text() == capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "run.yaml"],
        ["--config=run.yaml", "--gpus", "1"],
        ["--", "sft", "--config", "run.yaml"],
        ["--", "llmtune", "sft", "--config", "run.yaml"],
    ],
)
def test_flags_of_sft_in_a_file(words, capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("model_type: llmtune-tiny\ndataset: tiny-qa\noutput_dir: there\n")
    assert main(["launch", "--slurm", "--dry-run", *words]) == 0
    out = capsys.readouterr().out
    assert "--config run.yaml" in out or "--config=run.yaml" in out
    assert '--output_dir there/slurm-"$SLURM_JOB_ID"' in out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--dry-run", *SFT], "Choose a scheduler: --slurm, --sky or --ray."),
        (["--slurm", "--ray", *SFT], "--slurm and --ray: use one of them."),
        (["--slurm"], "Nothing to run. Give llmtune launch --slurm --gpus 8 -- sft"),
        (["--slurm", "--"], "Nothing to run"),
        (["--slurm", "--", "infer"], "After -- comes sft with its flags, not 'infer'"),
        (["--slurm", *SFT[1:]], "Put -- before sft"),
        (["--slurm", *SFT, "--batchsize", "2"], "Unknown flag --batchsize. Did you mean --batch_size"),
        (["--slurm", *SFT, "--batch_size", "0"], "--batch_size must be 1 or more"),
        (["--slurm", "--nodse", "2", *SFT], "Unknown flag --nodse. Did you mean --nodes"),
        (
            ["--slurm", "--nodes", "0", "--gpus", "-1", *SFT],
            "--gpus must be 0 or more, not -1.\n--nodes must be a number",
        ),
        (["--slurm", "--time", "tomorrow", *SFT], "--time tomorrow is not a time limit"),
        (["--slurm", "--partition", "a b", *SFT], "--partition 'a b' must not contain spaces"),
        (["--slurm", "--partition", "a\n#SBATCH", *SFT], "must not contain spaces"),
        (["--slurm", "--job_name", "a;b", *SFT], "--job_name 'a;b' may only contain letters"),
        (["--slurm", "--workdir", "nowhere", *SFT], "--workdir nowhere: there is no such folder"),
        (["--slurm", "--env", "HF_TOKEN=hidden", *SFT], "--env HF_TOKEN: give the name only"),
        (["--slurm", "--setup", "export HF_TOKEN=hidden", *SFT], "--setup sets HF_TOKEN="),
        (["--slurm", *SFT, "--hub_token", "hidden"], "--hub_token would be written"),
        (["--slurm", *SFT, "--hf_hub_token", "hidden"], "--hub_token would be written"),
        (["--slurm", *SFT, "--train_args", "hub_token=hidden"], "--train_args hub_token: use --hub_token instead"),
        (["--slurm", *SFT, "--nproc", "2"], "--nproc 2: a job has one process per GPU"),
        (["--sky", *SFT], "--sky needs the GPU type for --gpus 1: add --accelerator"),
        (["--sky", "--gpus", "0", "--spot", *SFT], "--spot machines lose their disks: add --bucket"),
        (["--sky", "--gpus", "0", "--bucket", "mine", *SFT], "--bucket mine is not a bucket URL"),
    ],
)
def test_launch_refuses_contradictions_and_shows_no_secret(argv, said, capsys, tmp_path):
    assert main(["launch", *argv]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "hidden" not in captured.err
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


def test_data_that_is_not_there(capsys):
    assert main(["launch", "--slurm", "--dry-run", "--", "sft", "--dataset", "my.jsonl"]) == 1
    assert "my.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--ray", "--time", "1:00:00", *SFT], "--time has no effect with --ray."),
        (["--slurm", "--bucket", "s3://a", *SFT], "--bucket has no effect with --slurm."),
        (["--slurm", "--gpus", "0", "--accelerator", "a100", *SFT], "--accelerator has no effect"),
        (["--slurm", *SFT, "--sft_type", "full"], "--only_save_model false to make it resume"),
        (["--slurm", *SFT, "--resume_from_checkpoint", "run/checkpoint-4"], "Give the run folder, run,"),
    ],
)
def test_launch_warns_of_flags_without_effect_and_jobs_that_cannot_resume(argv, said, capsys):
    assert main(["launch", "--dry-run", *argv]) == 0
    assert said in capsys.readouterr().err


def test_own_place_to_resume_from_stays(capsys):
    main(["launch", "--slurm", "--dry-run", *SFT, "--resume_from_checkpoint", "run", "--output_dir", "out"])
    out = capsys.readouterr().out
    assert "--resume_from_checkpoint run\n" in out
    assert "--output_dir out\n" in out
    assert "resume_from_checkpoint last" not in out


def test_files_are_looked_for_where_the_run_is(capsys, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/my.jsonl").write_text('{"query": "a", "response": "b"}\n')
    (tmp_path / "other.jsonl").write_text('{"query": "a", "response": "b"}\n')
    files = ["my.jsonl", "../other.jsonl#1"]
    argv = ["launch", "--sky", "--gpus", "0", "--workdir", "work", "--dry-run"]
    assert main([*argv, "--", "sft", "--model_type", "llmtune-tiny", "--dataset", *files]) == 0
    err = capsys.readouterr().err
    assert "other.jsonl is outside of" in err
    assert "my.jsonl" not in err
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize(
    ("flags", "command", "expected"),
    [
        (["--slurm"], "sbatch", "sbatch|llmtune-tiny.sbatch"),
        (["--slurm", "--output", "a.sh"], "sbatch", "sbatch|a.sh"),
        (["--sky", "--gpus", "0", "--env", "A"], "sky", "sky|launch|--secret|A|llmtune-tiny.sky.yaml"),
        (
            ["--sky", "--gpus", "0", "--spot", "--bucket", "s3://a", "--job_name", "x"],
            "sky",
            "sky|jobs|launch|x.sky.yaml",
        ),
    ],
)
def test_the_schedulers_exit_status_is_ours(flags, command, expected, tmp_path):
    """A scheduler's command that tells how it was called, and that the file is there; its status is ours."""
    program = tmp_path / "bin" / command
    program.parent.mkdir()
    program.write_text('#!/bin/bash\n[ -s "${@: -1}" ] || exit 5\nIFS="|"\necho "${0##*/}|$*"\nexit 3\n')
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "llmtune", "launch", *flags, *SFT],
        env=os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (3, f"{expected}\n"), done.stderr
    assert "Submitting: " in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--slurm"], "no sbatch here"), (["--sky", "--gpus", "0"], "pip install skypilot"), (["--ray"], "llmtune[ray]")],
)
def test_scheduler_that_is_not_here(flags, said, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["launch", *flags, *SFT]) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
