"""Those who follow a run read its files alone: states, responses, and what stopped it."""

from __future__ import annotations

import json
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llmtune import SftArguments, rm, sft
from llmtune.arguments.preference import RmArguments
from llmtune.cli.main import main
from llmtune.errors import UsageError
from llmtune.run.found import find_runs, resume_command
from llmtune.run.record import RunRecord
from llmtune.run.status import read_status
from llmtune.training import following, generation_eval

from .. import prepared
from ..waiting import SECONDS

SETTINGS: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-qa#60"], "max_steps": 6, "eval_steps": 2, "logging_steps": 1,
    "gradient_accumulation_steps": 1, "batch_size": 4, "report_to": ["none"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _few_tokens(monkeypatch):
    monkeypatch.setattr(following, "WATCHED_TOKENS", 4)


def samples(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.medium
def test_a_run_goes_through_its_states_and_names_its_end(tmp_path, monkeypatch):
    states: list[str] = []
    note = RunRecord.note

    def noted(self: RunRecord, **values: Any) -> None:
        note(self, **values)
        if not states or states[-1] != self.state:
            states.append(self.state)

    monkeypatch.setattr(RunRecord, "note", noted)
    monkeypatch.setattr(generation_eval, "Engine", lambda *_: pytest.fail("the last evaluation has the responses"))
    result = sft(SftArguments(**SETTINGS, output_dir=str(tmp_path), run_name="mine"))
    assert result.output_dir.name == "v0-mine"
    kept = [state for state, former in zip(states, ["", *states], strict=False) if state != former]
    steps = ["training", "evaluating", "saving"] * 3
    assert kept == ["preparing", "encoding", "loading", *steps, "training", "finished"]
    status = read_status(result.output_dir)
    assert status is not None
    assert (status.step, status.max_steps, status.resumable, status.eta_seconds) == (6, 6, True, None)
    assert result.checkpoint is not None
    report = (result.output_dir / "report.md").read_text(encoding="utf-8")
    last = [one["prompt"] for one in samples(result.output_dir) if one["step"] == 6]
    assert [prompt in report for prompt in last] == [True, True, True, False], "three of four, of this step"
    assert (status.best_checkpoint, status.last_checkpoint) == (result.checkpoint.name, "checkpoint-6")
    assert {"loss", "eval_loss", "learning_rate"} <= status.metrics.keys()
    assert status.tokens_per_second
    assert json.loads((result.output_dir / "training_args.json").read_text())["run_name"] == "mine"


@pytest.mark.medium
def test_tokens_and_time_so_far_are_logged_and_are_no_curves_of_their_own(tmp_path):
    run = sft(SftArguments(**SETTINGS, output_dir=str(tmp_path))).output_dir
    records = [json.loads(line) for line in (run / "logging.jsonl").read_text().splitlines()]
    losses = [record for record in records if "loss" in record]
    assert all(one["useful_tokens"] < two["useful_tokens"] for one, two in pairwise(losses))
    assert all(one["time"] <= two["time"] for one, two in pairwise(records))
    assert not [
        file for file in (run / "images").iterdir() if "time" in file.name or file.stem.endswith("useful_tokens")
    ]


@pytest.mark.medium
def test_four_held_out_rows_are_answered_at_each_evaluation(tmp_path):
    run = sft(SftArguments(**SETTINGS, output_dir=str(tmp_path))).output_dir
    found = samples(run)
    assert [(one["step"], one["index"]) for one in found] == [(step, row) for step in (2, 4, 6) for row in range(4)]
    assert found[0].keys() == {"step", "index", "prompt", "reference", "response"}
    assert all(one["prompt"] and one["reference"] for one in found)


@pytest.mark.medium
def test_watching_changes_no_loss(tmp_path):
    def losses(**more: Any) -> list[float]:
        settings = SETTINGS | {"lora_dropout_p": 0.1} | more
        run = sft(SftArguments(**settings, output_dir=str(tmp_path))).output_dir
        records = map(json.loads, (run / "logging.jsonl").read_text().splitlines())
        return [record["loss"] for record in records if "loss" in record]

    file = tmp_path / "asked.jsonl"
    file.write_text('{"query": "What is 1 plus 1?"}\n{"query": "Who are you?", "response": "Me."}\n')
    silent = losses(watch_prompts=["none"])
    assert losses(watch_prompts=["Hello?", str(file)]) == silent
    (quiet, watched) = sorted(tmp_path.glob("llmtune-tiny/*"))
    assert not (quiet / "samples.jsonl").exists()
    found = samples(watched)[:3]
    assert [one["prompt"] for one in found] == ["Hello?", "What is 1 plus 1?", "Who are you?"]
    assert [one["reference"] for one in found] == ["", "", "Me."]


def test_bad_prompts_are_refused_before_weights_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("llmtune.training.stage.build_model", lambda *_: pytest.fail("weights were loaded"))
    (tmp_path / "bad.jsonl").write_text('{"foo": 1}\n')
    cases = {
        "nowhere.jsonl": "there is no such file",
        str(tmp_path / "bad.jsonl"): "line 1: ",
    }
    for prompt, text in cases.items():
        with pytest.raises(UsageError, match=text):
            sft(SftArguments(**SETTINGS, output_dir=str(tmp_path / "out"), watch_prompts=[prompt]))
    with pytest.raises(UsageError, match="has 65 prompts"):
        sft(SftArguments(**SETTINGS, output_dir=str(tmp_path / "out"), watch_prompts=["a"] * 65))
    assert not (tmp_path / "out").exists()


@pytest.mark.medium
def test_a_reward_model_answers_nothing(tmp_path):
    settings = SETTINGS | {"dataset": ["tiny-pairs#20"], "max_steps": 2}
    assert not (rm(RmArguments(**settings, output_dir=str(tmp_path))).output_dir / "samples.jsonl").exists()


# Early stopping


@pytest.mark.medium
def test_early_stopping_counts_on_after_a_resumption(tmp_path):
    """A learning rate of next to nothing: the first evaluation stays the best one."""
    settings = SETTINGS | {"max_steps": 40, "eval_steps": 1, "learning_rate": 1e-12, "early_stopping_patience": 4}
    run = sft(SftArguments(**settings, output_dir=str(tmp_path / "a"), save_total_limit=-1)).output_dir
    ended = read_status(run)
    assert ended is not None
    assert 4 < ended.step < 40
    middle = run / f"checkpoint-{ended.step - 2}"
    resumed = sft(SftArguments(**settings, output_dir=str(tmp_path / "a"), resume_from_checkpoint=str(middle)))
    status = read_status(resumed.output_dir)
    assert status is not None
    assert status.step == ended.step


def test_early_stopping_needs_evaluations(tmp_path):
    with pytest.raises(UsageError, match="--early_stopping_patience compares evaluations"):
        SftArguments(**SETTINGS, early_stopping_patience=2, eval_strategy="no")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "a", "response": "b"}\n')
    settings = SETTINGS | {"dataset": [str(rows)], "dataset_test_ratio": 0}
    with pytest.raises(UsageError, match="there are no validation rows"):
        sft(SftArguments(**settings, output_dir=str(tmp_path), early_stopping_patience=2))


# Signals and death


FLAGS = [
    *("--model_type", "llmtune-tiny", "--dataset", "tiny-qa", "--max_steps", "400", "--save_steps", "20"),
    *("--batch_size", "2", "--gradient_accumulation_steps", "1", "--logging_steps", "1", "--eval_strategy", "no"),
]


@pytest.mark.slow
def test_a_killed_run_has_failed_and_its_resumption_joins_the_curve(tmp_path, capsys):
    root = tmp_path / "output"
    process = prepared.start(*prepared.LLMTUNE, "sft", *FLAGS, "--output_dir", root, folder=tmp_path)
    process.wait_for("step 30/")
    (run,) = find_runs(root)
    assert run.status.state in ("training", "saving")
    process.kill()
    (run,) = find_runs(root)
    assert run.status.state == "failed"
    assert "killed" in run.status.error
    assert run.status.resumable
    assert resume_command(run)[:2] == ["sft", "--resume_from_checkpoint"]
    process = prepared.start(*prepared.LLMTUNE, "runs", "resume", run.folder, folder=tmp_path)
    process.wait_for("step 50/")
    assert main(["runs", "stop", str(run.folder)]) == 0
    assert process.wait() == 0
    (run,) = find_runs(root)
    assert (run.status.state, run.status.error) == ("stopped", "")
    records = map(json.loads, (run.folder / "logging.jsonl").read_text().splitlines())
    steps = {record["global_step"] for record in records if "loss" in record}
    assert steps == set(range(1, max(steps) + 1))
    log = (run.folder / "run.log").read_text()
    assert log.count("--- 20") == 2
    assert "SIGTERM: saving a checkpoint after this step" in log


@pytest.mark.slow
def test_sigterm_while_it_encodes_stops_it(tmp_path):
    rows = tmp_path / "many.jsonl"
    rows.write_text('{"query": "What is it?", "response": "It is a long way."}\n' * 200_000)
    words = ["--model_type", "llmtune-tiny", "--dataset", rows, "--output_dir", tmp_path / "output"]
    process = prepared.start(*prepared.LLMTUNE, "sft", *words, folder=tmp_path)
    deadline = time.monotonic() + SECONDS
    while not (runs := find_runs(tmp_path / "output")) or runs[0].status.state != "encoding":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130
    (run,) = find_runs(tmp_path / "output")
    assert run.status.state == "stopped"


@pytest.mark.slow
def test_all_processes_write_one_record(tmp_path):
    """torchrun takes over the process: what was asked to stop is what was started."""
    root = tmp_path / "output"
    process = prepared.start(
        *prepared.LLMTUNE, "sft", *FLAGS, "--nproc", "2", "--output_dir", root, folder=tmp_path
    )  # fmt: skip
    process.wait_for("step 3/")
    (run,) = find_runs(root)
    assert (run.status.pid, run.status.processes) == (process.processes[0].pid, 2)
    assert main(["runs", "stop", str(run.folder)]) == 0
    assert process.wait() == 0
    (run,) = find_runs(root)
    assert run.status.state == "stopped"
    assert run.status.resumable


TRAIN_ARGS = {"adam_beta2": 0.9, "adam_epsilon": 1e-6, "logging_first_step": True, "torch_empty_cache_steps": 3,
              "eval_delay": 2, "dataloader_drop_last": True, "project": "ours", "ddp_timeout": 99}  # fmt: skip


@pytest.mark.medium
def test_no_later_code_overwrites_a_field_that_was_given(tmp_path):
    """`--train_args run_name=...` was announced, and overwritten with the name of the folder."""
    given = [f"{name}={value}" for name, value in TRAIN_ARGS.items()]
    settings = SETTINGS | {"max_steps": 2, "train_args": given}
    run = sft(SftArguments(**settings, output_dir=str(tmp_path))).output_dir
    found = json.loads((run / "training_args.json").read_text())
    assert {name: found[name] for name in TRAIN_ARGS} == TRAIN_ARGS
