"""The record of a run in its folder: there from its first second, true at its last, for any reader."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtune import SftArguments
from llmtune.arguments.parser import parse
from llmtune.errors import DataError, HubError, ModelError, OutputError, UsageError
from llmtune.run.record import RunRecord, recorded, typed_yaml
from llmtune.run.status import LOST, RunStatus, read_status

TINY = {"model_type": "llmtune-tiny", "dataset": ["tiny-qa#20"]}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def only_run() -> Path:
    (run,) = Path("output/llmtune-tiny").iterdir()
    return run


def test_a_run_is_found_before_anything_is_read():
    with recorded(SftArguments(**TINY)) as record:
        run = only_run()
        found = json.loads((run / "status.json").read_text())
        assert {"run.log", "run.yaml", "status.json"} <= {file.name for file in run.iterdir()}
        assert record.folder == run.resolve()
    assert found["state"] == "preparing"
    assert (found["pid"], found["host"], found["stage"]) == (os.getpid(), socket.gethostname(), "sft")
    assert abs(found["pid_started"] - psutil.Process().create_time()) < 1
    status = read_status(run)
    assert status is not None
    assert (status.state, status.error, status.is_alive) == ("finished", "", False)
    assert status.ended >= status.started > "2026"


def test_calls_within_share_one_record():
    with recorded(SftArguments(**TINY)) as outer, recorded(SftArguments(**TINY)) as inner:
        assert inner is outer
    assert only_run()


@pytest.mark.parametrize(
    ("err", "state", "text"),
    [
        (DataError("my.jsonl line 3: no question. Look there."), "failed", "my.jsonl line 3: no question. Look"),
        (RuntimeError("boom"), "failed", "RuntimeError: boom The traceback is in run.log."),
        (KeyboardInterrupt(), "stopped", ""),
        (HubError("It is not on the hub."), "failed", "It is not on the hub."),
    ],
)  # fmt: skip
def test_how_it_ended_is_in_the_status_and_why_in_the_log(err, state, text, monkeypatch):
    monkeypatch.setattr("llmtune.run.record.QUICK_SECONDS", -1.0)

    def work() -> None:
        with recorded(SftArguments(**TINY)) as record:
            record.note(state="preparing" if isinstance(err, HubError) else "encoding")
            raise err

    with pytest.raises(type(err)):
        work()
    status = read_status(only_run())
    assert status is not None
    assert status.state == state
    assert status.error.startswith(text)
    log = (only_run() / "run.log").read_text()
    assert ("Traceback" in log) == isinstance(err, RuntimeError)
    assert str(err) in log


@pytest.mark.parametrize("err", [UsageError("no"), ModelError("no such folder"), HubError("The token is refused.")])
@pytest.mark.parametrize("flat", [False, True])
def test_a_refused_start_leaves_nothing(err, flat):
    Path("other").mkdir()
    with pytest.raises(type(err)), recorded(SftArguments(**TINY, output_dir_flat=flat)):
        raise err
    assert {place.name for place in Path().iterdir()} == {"other"}


def test_a_refused_start_leaves_the_folder_that_was_there():
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("kept")
    with pytest.raises(UsageError), recorded(SftArguments(**TINY, output_dir="mine", output_dir_flat=True)):
        raise UsageError("no")
    assert Path("mine/notes.txt").read_text() == "kept"


def test_a_refused_resumption_leaves_the_status_of_the_run(tmp_path, monkeypatch):
    with recorded(SftArguments(**TINY)):
        pass
    run = only_run()
    before = (run / "status.json").read_text()
    checkpoint = run / "checkpoint-1"
    monkeypatch.setattr("llmtune.run.record.find_resumable", lambda *_, **__: checkpoint)
    with pytest.raises(UsageError), recorded(SftArguments(**TINY)):
        raise UsageError("nothing is left to train")
    assert json.loads((run / "status.json").read_text()) == json.loads(before)


def test_both_streams_are_in_the_log_without_the_redraws_of_bars(capsys):
    with recorded(SftArguments(**TINY)):
        sys.stdout.write("to standard output\n")
        for percent in range(0, 101, 20):
            sys.stderr.write(f"\r{percent} %\x1b[K")
        sys.stderr.write("\nto standard error\n")
    captured = capsys.readouterr()
    assert captured.out == "to standard output\n"
    assert "\r20 %" in captured.err
    log = (only_run() / "run.log").read_text()
    assert [line for line in log.splitlines() if not line.startswith("---")] == [
        "to standard output", "100 %", "to standard error",
    ]  # fmt: skip


def test_notes_reach_the_file_and_the_heart_beats(monkeypatch):
    monkeypatch.setattr("llmtune.run.record.POLL_SECONDS", 0.01)
    monkeypatch.setattr("llmtune.run.record.HEARTBEAT_SECONDS", 0.05)
    written = []

    def write(self: RunRecord) -> None:
        self._written = self._status
        written.append(self.state)

    monkeypatch.setattr(RunRecord, "write", write)
    with recorded(SftArguments(**TINY)) as record:
        record.note(state="training", step=3, max_steps=9)
        deadline = time.monotonic() + 20
        while written.count("training") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert written[0] == "preparing"


def test_a_full_disk_is_no_reason_to_stop(monkeypatch):
    monkeypatch.setattr("llmtune.run.record.POLL_SECONDS", 0.01)
    with recorded(SftArguments(**TINY)) as record:

        def full(*_: object) -> None:
            raise OutputError("No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(RunRecord, "write", full)
            record.note(step=1)
            time.sleep(0.1)
            assert record._thread is not None
            assert record._thread.is_alive()


def test_sigterm_before_training_stops_it():
    def work() -> None:
        with recorded(SftArguments(**TINY)):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        work()
    status = read_status(only_run())
    assert status is not None
    assert status.state == "stopped"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_process_may_not_take_the_folder():
    with recorded(SftArguments(**TINY, output_dir="flat", output_dir_flat=True)):
        code = (
            "from llmtune import SftArguments\nfrom llmtune.run.record import recorded\n"
            "with recorded(SftArguments(model_type='llmtune-tiny', output_dir='flat', output_dir_flat=True)): pass"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert f"in use by another run (process {os.getpid()}" in found.stderr
        assert json.loads(Path("flat/status.json").read_text())["pid"] == os.getpid()


# run.yaml


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": st.floats(1e-9, 1, allow_nan=False),
        "max_steps": st.integers(1, 10**6),
        "system": st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=20),
        "lora_target_modules": st.lists(st.sampled_from(["q_proj", "v_proj"]), min_size=1, max_size=2, unique=True),
        "packing": st.booleans(),
        "run_name": st.sampled_from(["mine", "三", "a.b-c", "007", "no", "1e5"]),
        "train_args": st.just(["adam_beta1=0.5"]),
        "save_total_limit": st.just(-1),
    },
)


@given(VALUES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_typed_is_a_config_with_the_same_arguments(values):
    args = SftArguments(**TINY, **values)
    file = Path("run.yaml")
    file.write_text(typed_yaml(args), encoding="utf-8")
    assert parse(SftArguments, ["--config", str(file)], command="sft") == args


def test_no_secret_is_in_any_file(capsys):
    with recorded(SftArguments(**TINY, hub_token="hf_secret", push_to_hub=True)):
        pass
    assert not [file for file in only_run().iterdir() if "hf_secret" in file.read_text()]


# Reading


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"state": "well"}', '{"state": 3}', "\x00\xff"])
def test_a_broken_file_is_no_status(text, tmp_path):
    (tmp_path / "status.json").write_bytes(text.encode("latin-1"))
    assert read_status(tmp_path) is None
    assert read_status(tmp_path / "nowhere") is None


def test_fields_of_another_version_or_type_are_left_out(tmp_path):
    found = {"state": "finished", "step": "7", "max_steps": True, "new": 1, "metrics": {"loss": "x"}, "name": "a"}
    (tmp_path / "status.json").write_text(json.dumps(found))
    assert read_status(tmp_path) == RunStatus(state="finished", name="a")


def status_file(folder: Path, **values: object) -> Path:
    own = {"state": "training", "pid": os.getpid(), "pid_started": psutil.Process().create_time()}
    own |= {"host": socket.gethostname(), "updated": "2026-01-01T00:00:00+00:00"}
    (folder / "status.json").write_text(json.dumps(own | values))
    return folder


@pytest.mark.parametrize("values", [{"pid": 2**22 + 1}, {"pid_started": 5.0}, {"host": "elsewhere"}])
def test_a_run_whose_process_is_gone_has_failed(tmp_path, values):
    assert read_status(status_file(tmp_path)).state == "training"  # type: ignore[union-attr]
    status = read_status(status_file(tmp_path, **values))
    assert status is not None
    assert (status.state, status.error) == ("failed", LOST)
