"""Files of runs as pages show them: broken, empty, growing, resumed."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtune.board.data import (
    Point,
    differing_settings,
    read_checkpoints,
    read_curves,
    read_decisions,
    read_log,
    read_samples,
    smoothed,
    thinned,
)

BROKEN = ["", "{", "null\n", "[]\n", '{"global_step": "x", "loss": 1}\n', '{"global_step": 1, "loss": "x"}\n', "\x00\n",
          '{"global_step": 1, "loss": NaN}\n', '{"step": 1}\n', '{"index": 0, "step": null}\n']  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_broken_files_show_nothing_and_raise_nothing(tmp_path, text):
    for name in ("logging.jsonl", "samples.jsonl", "run.log", "sft_args.json", "run.yaml", "status.json"):
        (tmp_path / name).write_text(text)
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text(text)
    assert not read_curves(tmp_path)
    assert not read_samples(tmp_path)
    assert not read_decisions(tmp_path)
    assert read_checkpoints(tmp_path) == [(tmp_path / "checkpoint-5", {})]
    assert differing_settings([tmp_path, tmp_path]) == {}


def test_no_file_is_no_curve(tmp_path):
    assert (read_curves(tmp_path), read_samples(tmp_path), read_log(tmp_path)) == ({}, [], [])


def log(folder: Path, *records: dict[str, float]) -> Path:
    (folder / "logging.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records) + '{"global_step": 9')
    return folder


def test_a_resumed_curve_joins_and_counts_tokens_and_time_on(tmp_path):
    first = [
        {"global_step": step, "loss": 9.0 - step, "useful_tokens": 10 * step, "time": 100.0 + step}
        for step in (1, 2, 3)
    ]
    again = [
        {"global_step": step, "loss": step, "useful_tokens": 10 * (step - 1), "time": 500.0 + step}
        for step in (2, 3, 4)
    ]
    found = read_curves(log(tmp_path, *first, *again))["loss"]
    assert [(one.step, one.value) for one in found] == [(1, 8.0), (2, 2), (3, 3), (4, 4)]
    assert [one.tokens for one in found] == [10, 40, 50, 60]
    assert all(one.seconds <= two.seconds for one, two in pairwise(found))


@given(st.lists(st.integers(0, 9), max_size=3000), st.integers(2, 50))
def test_thinning_keeps_the_whole_run_and_its_last_point(values, most):
    points = [Point(step, 0, 0, value) for step, value in enumerate(values)]
    found = thinned(points, most)
    assert len(found) <= most + 1
    if points:
        assert (found[0], found[-1]) == (points[0], points[-1])


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50), st.floats(0, 0.99))
def test_smoothing_stays_within_the_values_and_0_changes_nothing(values, weight):
    found = smoothed(values, weight)
    assert min(values) - 1e-6 <= min(found)
    assert max(found) <= max(values) + 1e-6
    assert all(map(math.isclose, smoothed(values, 0.0), values))


def test_responses_of_steps_that_were_trained_again_are_the_later_ones(tmp_path):
    records = [
        {"step": step, "index": 0, "prompt": "a", "reference": "b", "response": f"old {step}"} for step in (5, 10, 15)
    ]
    records += [{"step": 10, "index": 0, "prompt": "a", "reference": "b", "response": "new 10"}]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    (one,) = read_samples(tmp_path)
    assert one.responses == {5: "old 5", 10: "new 10"}


def test_the_log_is_read_from_its_end_and_searched(tmp_path):
    lines = [f"line {number} {'ERROR' if number % 50 == 0 else 'fine'}" for number in range(100_000)]
    (tmp_path / "run.log").write_text("\n".join(lines))
    assert read_log(tmp_path, 3) == lines[-3:]
    assert read_log(tmp_path, 2, "error") == [lines[-100], lines[-50]]


def test_decisions_are_those_of_the_last_start(tmp_path):
    block = "Chosen automatically:\n  Device: {}; there is no GPU\n  dtype: fp32; why\nstep 1/2\n"
    (tmp_path / "run.log").write_text(block.format("old") + block.format("new"))
    assert read_decisions(tmp_path) == ["Device: new; there is no GPU", "dtype: fp32; why"]


def test_only_the_settings_that_differ(tmp_path):
    for name, rank in (("a", 8), ("b", 16)):
        (tmp_path / name).mkdir()
        settings = {"lora_rank": rank, "seed": 1, "dataset": ["x"], "_versions": rank, "output_dir": name}
        (tmp_path / name / "sft_args.json").write_text(json.dumps(settings))
    assert differing_settings([tmp_path / "a", tmp_path / "b"]) == {"lora_rank": ["8", "16"]}
