"""Curves: which scalars are drawn, from which records, under which names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from llmtune.errors import OutputError
from llmtune.run import plot
from llmtune.run.curves import draw_curves, read_scalars, smooth

SUMMARY = {"train_runtime": 3.2, "train_samples_per_second": 9.0, "total_flos": 1e9, "train_loss": 1.5, "epoch": 1.0}

PAINT = plot.Sheet.draw
"""As it is before tests/conftest.py spares the other tests its time."""


@pytest.fixture(autouse=True)
def _painted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot.Sheet, "draw", PAINT)


def write_log(path: Path, *records: dict[str, object], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail, encoding="utf-8")
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    train = [
        {"loss": 3.0 / step, "learning_rate": 1e-4, "grad_norm": 1.0, "epoch": 0.1 * step, "global_step": step}
        for step in range(1, 6)
    ]
    evaluation = {"eval_loss": 2.0, "eval_rouge-l": 31.0, "eval_runtime": 1.0, "global_step": 5, "epoch": 0.5}
    extra = {"mix/chinese": 0.5, "num_input_tokens_seen": 7, "useful_tokens_per_second": 1.0, "global_step": 5}
    return write_log(tmp_path / "logging.jsonl", *train, evaluation, extra, {**SUMMARY, "global_step": 5}, tail='{"lo')


def test_each_scalar_of_the_log_is_plotted(log: Path, tmp_path: Path):
    folder = tmp_path / "images"
    found = draw_curves(log, folder)
    expected = {
        "train_loss",
        "train_learning_rate",
        "train_grad_norm",
        "eval_loss",
        "eval_rouge-l",
        "train_mix_chinese",
    }
    assert {path.name for path in found} == {f"{name}.png" for name in expected}
    assert set(folder.iterdir()) == set(found)  # no temporary file is left


def pixels(path: Path) -> list[tuple[int, int, int]]:
    image = Image.open(path)
    assert (image.size, image.mode) == ((800, 500), "RGB")
    return [tuple(image.getpixel((x, y))) for y in range(500) for x in range(800)]  # type: ignore[misc, arg-type]


RAW, SMOOTHED = (0xFF, 0xE2, 0xD9), (0xFF, 0x70, 0x43)


def test_plots_have_the_documented_size_and_colours(log: Path, tmp_path: Path):
    draw_curves(log, tmp_path)
    loss, norm = pixels(tmp_path / "train_loss.png"), pixels(tmp_path / "train_grad_norm.png")
    assert {RAW, SMOOTHED} <= set(loss)
    assert set(norm) & {RAW, SMOOTHED} == {SMOOTHED}


def test_one_point_is_visible(log: Path, tmp_path: Path):
    draw_curves(log, tmp_path)
    assert pixels(tmp_path / "eval_loss.png").count(SMOOTHED) > 5


def test_smoothing_is_corrected_for_its_start():
    assert smooth([2.0, 2.0, 2.0]) == pytest.approx([2, 2, 2])
    assert smooth([1.0, 3.0]) == pytest.approx([1, (0.09 + 0.3) / 0.19])


def test_resumed_run_overwrites_steps(tmp_path: Path):
    log = write_log(
        tmp_path / "l.jsonl",
        {"loss": 8.0, "global_step": 4},
        {"loss": 3.0, "global_step": 1},
        {"loss": 9.0, "global_step": 2},
        {"loss": 2.0, "global_step": 2},
        {"loss": 1.0, "global_step": 3},
    )
    assert list(read_scalars(log)["loss"].items()) == [(1, 3.0), (2, 2.0), (3, 1.0), (4, 8.0)]


def test_what_is_no_number_is_left_out(tmp_path: Path):
    log = tmp_path / "l.jsonl"
    log.write_text(
        '{"loss": NaN, "global_step": 1}\nnot JSON\n[1]\n{"loss": 1.0}\n{"note": "x", "flag": true, "global_step": 1}\n'
        '{"loss": 2.0, "global_step": 2}\n'
    )
    assert read_scalars(log) == {"loss": {2: 2.0}}


def test_empty_log_draws_nothing(tmp_path: Path):
    assert draw_curves(write_log(tmp_path / "l.jsonl"), tmp_path / "images") == []


def test_missing_log_is_explained(tmp_path: Path):
    with pytest.raises(OutputError, match=r"nothing\.jsonl"):
        draw_curves(tmp_path / "nothing.jsonl", tmp_path)
