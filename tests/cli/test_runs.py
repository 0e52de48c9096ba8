"""`llmtune runs`, on folders as runs leave them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmtune.cli.main import main
from llmtune.errors import CheckpointError
from llmtune.run.found import find_runs, pick_run, read_run, resume_command
from llmtune.run.sentences import SENTENCES, sentence
from llmtune.run.status import State


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_run(name: str, *, checkpoint: bool = False, **values: Any) -> Path:
    folder = Path("output/tiny") / name
    folder.mkdir(parents=True)
    status = {"state": "finished", "stage": "sft", "name": name, "step": 5, "max_steps": 5, "metrics": {"loss": 1.5}}
    minute = f"{len(list(folder.parent.iterdir())):02}"
    status |= {"started": f"2026-11-30T10:{minute}:00+00:00", "last_checkpoint": "checkpoint-5"}
    (folder / "status.json").write_text(json.dumps(status | {"resumable": checkpoint} | values))
    if checkpoint:
        made = folder / "checkpoint-5"
        made.mkdir()
        (made / "trainer_state.json").write_text('{"global_step": 5, "max_steps": 9}')
        for part in ("scheduler.pt", "optimizer.pt", "rng_state.pth"):
            (made / part).write_bytes(b"x")
    return folder


def alive(process: int) -> dict[str, Any]:
    started = psutil.Process(process).create_time()
    return {"state": "training", "pid": process, "pid_started": started, "host": socket.gethostname()}


@pytest.fixture
def sleeper():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield child
    child.kill()
    child.wait()


def test_runs_are_listed_newest_first(capsys):
    assert main(["runs"]) == 0
    assert "Start one with llmtune sft" in capsys.readouterr().out
    make_run("v0-a")
    make_run("v1-b", state="failed", error="It broke.")
    assert main(["runs", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["RUN", "tiny/v1-b", "tiny/v0-a"]
    assert main(["runs", "--json", "true"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["name"], one["state"]) for one in records] == [("v1-b", "failed"), ("v0-a", "finished")]
    nothing = "It has no checkpoint to resume from: start it anew."
    assert records[0]["sentence"] == f"Failed at step 5 of 5: It broke. {nothing}"


def test_links_hidden_folders_and_checkpoints_are_no_runs():
    run = make_run("v0-a")
    inside = run / "checkpoint-5"
    inside.mkdir()
    (inside / "status.json").write_text('{"state": "finished"}')
    Path("output/tiny/link").symlink_to(run.resolve())
    hidden = Path("output/.queue/x")
    hidden.mkdir(parents=True)
    (hidden / "status.json").write_text('{"state": "finished"}')
    assert [one.folder for one in find_runs(Path("output"))] == [run]


def test_a_run_is_named_by_path_number_or_last(capsys):
    first, second = make_run("v0-a"), make_run("v1-b")
    make_run("v10-c")
    root = Path("output")
    for name, expected in (("v0", first), ("v0-a", first), ("tiny/v1-b", second), (str(second), second)):
        assert pick_run(name, root).folder.resolve() == expected.resolve()
    assert pick_run("last", root).folder.name == "v10-c"
    assert main(["runs", "show", "v1"]) == 2
    assert "Several runs are called 'v1' below output: tiny/v10-c, tiny/v1-b." in capsys.readouterr().err
    assert main(["runs", "show", "nowhere"]) == 2
    assert main(["runs", "dance", "v0"]) == 2
    assert main(["runs", "show"]) == 2


def test_a_run_of_an_older_version_is_shown(capsys):
    folder = make_run("v0-old", checkpoint=True)
    (folder / "status.json").unlink()
    (folder / "sft_args.json").write_text('{"model_type": "tiny", "dataset": ["a"], "_started": "2025-01-01T00:00:00"}')
    (folder / "logging.jsonl").write_text('{"loss": 2.5, "global_step": 5}\n{"loss": 2.')
    run = read_run(folder)
    assert run is not None
    assert (run.status.state, run.status.step, run.status.metrics["loss"]) == ("stopped", 5, 2.5)
    assert resume_command(run) == ["sft", "--resume_from_checkpoint", str(folder)]
    assert main(["runs", "show", "last", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resumable"] is True
    assert main(["runs", "tail", "last"]) == 2
    assert "has no run.log" in capsys.readouterr().err


def test_stop_asks_and_kill_ends_the_process_and_its_children(sleeper, capsys):
    make_run("v0-a", **alive(sleeper.pid))
    assert main(["runs", "stop", "last"]) == 0
    assert "saves a checkpoint and stops: tiny/v0-a. To resume it: llmtune runs resume" in capsys.readouterr().out
    assert sleeper.wait(20) == -signal.SIGTERM
    assert main(["runs", "stop", "last"]) == 2
    assert "is not running" in capsys.readouterr().err


PARENT = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
time.sleep(600)
"""


def test_kill(capsys):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    make_run("v0-a", **alive(parent.pid))
    assert main(["runs", "stop", "last", "--kill", "true"]) == 0
    assert parent.wait(20) == -signal.SIGKILL
    child.wait(20)
    run = read_run(Path("output/tiny/v0-a"))
    assert run is not None
    assert run.status.state == "failed"


def test_another_process_of_the_same_number_is_left_alone(sleeper, capsys):
    make_run("v0-a", **(alive(sleeper.pid) | {"pid_started": 5.0}))
    make_run("v1-b", **(alive(os.getpid()) | {"host": "elsewhere", "updated": "2999-01-01T00:00:00+00:00"}))
    assert main(["runs", "stop", "v0"]) == 2
    assert main(["runs", "stop", "v1"]) == 2
    assert "runs on elsewhere" in capsys.readouterr().err
    assert sleeper.poll() is None


def test_resume_repeats_the_processes_and_devices_that_no_checkpoint_has():
    folder = make_run("v0-a", checkpoint=True, state="stopped")
    (folder / "run.yaml").write_text(
        "_stage: sft\nmodel_type: llmtune-tiny\nnproc: 2\nrun_name: a\noutput_dir: here\nwatch_prompts: [one, two]\n"
        "learning_rate: 1.0\npeft_path: x\n"
    )
    run = read_run(folder)
    assert run is not None
    flags = ["--watch_prompts", "one", "two", "--nproc", "2"]
    found = resume_command(run)
    assert found[:3] == ["sft", "--resume_from_checkpoint", str(folder)]
    assert sorted(found[3:]) == sorted(flags)


def test_what_cannot_be_resumed_says_how_to_start_anew():
    folder = make_run("v0-a", state="failed")
    run = read_run(folder)
    assert run is not None
    with pytest.raises(CheckpointError, match=r"no checkpoint to resume from\. Start it anew: llmtune sft --config"):
        resume_command(run)


def test_rm_asks_and_never_touches_a_live_run(capsys, monkeypatch):
    make_run("v0-a")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: "n")
    assert main(["runs", "rm", "v0"]) == 1
    assert Path("output/tiny/v0-a").is_dir()
    monkeypatch.setattr("builtins.input", lambda text: "y")
    assert main(["runs", "rm", "v0"]) == 0
    assert not Path("output/tiny/v0-a").exists()
    make_run("v1-b", **alive(os.getpid()))
    assert main(["runs", "rm", "v1", "--yes", "true"]) == 2
    assert Path("output/tiny/v1-b").is_dir()


def test_tail_follows_until_the_run_ends(capsys, monkeypatch):
    folder = make_run("v0-a", **alive(os.getpid()))
    log = folder / "run.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))

    def end(_: float) -> None:
        log.write_text(log.read_text() + "last words\n")
        make = json.loads((folder / "status.json").read_text())
        (folder / "status.json").write_text(json.dumps(make | {"state": "finished"}))

    monkeypatch.setattr("time.sleep", end)
    assert main(["runs", "tail", "last", "--follow", "true", "--lines", "2"]) == 0
    assert capsys.readouterr().out == "line 98\nline 99\nlast words\n"


@pytest.mark.parametrize("language", SENTENCES)
def test_every_state_has_a_sentence(language):
    for number, state in enumerate(State.__args__):  # type: ignore[attr-defined]
        run = read_run(make_run(f"v{number}-{language}", **(alive(os.getpid()) | {"state": state})))
        assert run is not None
        text = sentence(run, language)
        assert "{" not in text
        assert len(text) > 5
    assert SENTENCES[language].keys() == SENTENCES["en"].keys()
