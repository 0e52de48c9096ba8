"""Commands of other tools: each is one of ours, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtune.arguments.stages import BY_FLAG
from llmtune.cli.main import COMMANDS, main
from llmtune.cli.neighbours import NEIGHBOURS
from llmtune.utils import logging

TINY = ["--model_type", "llmtune-tiny"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "_said", set())


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_every_command_of_a_neighbour_is_one_of_ours(name, capsys):
    assert NEIGHBOURS[name].command in {*COMMANDS, *BY_FLAG}
    assert name not in COMMANDS
    assert main([name.replace("-", "_"), "--no_such_flag", "x"]) == 2
    said = capsys.readouterr().err
    assert f"llmtune {name} is llmtune {NEIGHBOURS[name].command}" in said


def test_the_words_that_a_name_implies(capsys):
    assert main(["chat", *TINY, "--eval_humann"]) == 2
    assert "is llmtune infer --eval_human true" in capsys.readouterr().err
    Path("run.yaml").write_text("model_type: llmtune-tiny\ndataset: tiny-qa\nstage: sft\n")
    assert main(["validate", "run.yaml"]) == 0
    assert "Dry run: all flags are valid" in capsys.readouterr().out


def test_a_near_name_of_a_neighbour_is_suggested(capsys):
    assert main(["preproces"]) == 2
    assert "Did you mean 'preprocess'?" in capsys.readouterr().err
