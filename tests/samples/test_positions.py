"""Samples longer than the positions that a model was trained with are counted before anything is spent on them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import AutoConfig

from llmtune import SftArguments
from llmtune.cli.main import main
from llmtune.errors import UsageError
from llmtune.samples import prepare as positions
from llmtune.samples.prepare import note_positions, prepare


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    texts = ["a"] * 3 + ["one two three " * 800] * 2
    file.write_text("".join(json.dumps({"query": "q", "response": text}) + "\n" for text in texts))
    return str(file)


def arguments(rows: str, **options: Any) -> SftArguments:
    settings: dict[str, Any] = {
        "model_type": "llmtune-tiny",
        "dataset_test_ratio": 0.0,
        "max_length": -1,
        "max_steps": 1,
    }
    return SftArguments(**settings | {"dataset": [rows]} | options)


def test_longer_samples_are_counted(rows, capsys):
    args = arguments(rows)
    note_positions(prepare(args), args)
    said = capsys.readouterr().err
    assert "2 of 5 samples are longer than the 2,048 positions that the model was trained with; the longest has" in said
    assert "Truncate them with --max_length 2048" in said


@pytest.mark.parametrize("options", [{"max_length": 2048}, {"rope_scaling": "linear", "rope_factor": 4.0}], ids=str)
def test_cut_samples_and_scaled_positions_are_none_of_them(rows, options, capsys):
    args = arguments(rows, **options)
    note_positions(prepare(args), args)
    assert "positions that the model was trained with" not in capsys.readouterr().err


def test_a_table_of_positions_has_an_end(rows, monkeypatch):
    config = AutoConfig.for_model("gpt2", n_positions=1024)
    monkeypatch.setattr(positions, "native_config", lambda *_, **__: config)
    args = arguments(rows)
    with pytest.raises(UsageError, match=r"2 of 5 samples .* no more positions: use --max_length 1024"):
        note_positions(prepare(args), args)


def test_check_tells_it_too(rows, capsys):
    words = ["--model_type", "llmtune-tiny", "--dataset", rows, "--max_length", "-1", "--dataset_test_ratio", "0"]
    assert main(["check", *words, "--rows", "0"]) == 0
    assert "2 of 5 samples are longer than" in capsys.readouterr().err
