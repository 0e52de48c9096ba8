"""A sweep is queued whole or not at all, and its runs differ in what the file lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtune.arguments.parser import parse
from llmtune.arguments.stage import SftArguments
from llmtune.cli.main import main
from llmtune.cli.stages import without_flag
from llmtune.run.found import find_runs
from llmtune.run.queue import Queue

TINY = ["sft", "--model_type", "llmtune-tiny", "--dataset", "tiny-qa#20", "--max_steps", "1", "--eval_strategy", "no"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def queued() -> list[SftArguments]:
    return [parse(SftArguments, ["--config", str(one.file)], command="sft") for one in Queue(Path()).waiting()]


def test_each_combination_is_a_run_with_a_name_of_its_own(capsys):
    Path("sweep.yaml").write_text("learning_rate: [1e-4, 2e-4]\nlora_rank: [4, 8]\nseed: 3\n")
    assert main([*TINY, "--sweep", "sweep.yaml", "--batch_size", "2"]) == 0
    found = queued()
    assert [(one.learning_rate, one.lora_rank, one.seed, one.batch_size) for one in found] == [
        (1e-4, 4, 3, 2), (1e-4, 8, 3, 2), (2e-4, 4, 3, 2), (2e-4, 8, 3, 2),
    ]  # fmt: skip
    assert len({one.run_name for one in found}) == 4
    assert "4 runs are queued. llmtune runs work" in capsys.readouterr().out
    assert not find_runs(Path()), "none is started"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora_rank: [4, 0]\n", "With --lora_rank 0"),
        ("lora_rang: [4]\n", "lora_rang"),
        ("{}\n", "must hold one flag per line"),
        ("lora_rank: []\n", "must hold one flag per line"),
        ("lora_rank: [[1]]\n", "must hold one flag per line"),
        ("- 1\n", "one flag per line"),
        (f"seed: {list(range(1001))}\n", "1,001 combinations"),
    ],
)
def test_a_sweep_with_a_fault_queues_nothing(text, said, capsys):
    Path("sweep.yaml").write_text(text)
    assert main([*TINY, "--sweep", "sweep.yaml"]) == 2
    assert said in capsys.readouterr().err
    assert Queue(Path()).waiting() == []
    assert main([*TINY, "--sweep", "nowhere.yaml"]) == 2


@pytest.mark.parametrize(
    ("words", "rest"),
    [
        (["--a", "1", "--sweep", "x", "--b"], ["--a", "1", "--b"]),
        (["--sweep=x", "--b", "2"], ["--b", "2"]),
        (["--b", "--sweep", "x"], ["--b"]),
        (["--sweeper", "x"], ["--sweeper", "x"]),
    ],
)
def test_the_flag_itself_is_no_flag_of_the_runs(words, rest):
    assert without_flag(words, "sweep") == rest


@pytest.mark.slow
def test_work_runs_the_queue_until_it_is_empty(capsys):
    Path("sweep.yaml").write_text("lora_rank: [2, 4]\n")
    assert main([*TINY, "--sweep", "sweep.yaml"]) == 0
    assert main(["runs", "work"]) == 0
    assert sorted(one.status.state for one in find_runs(Path("output"))) == ["finished", "finished"]
    assert {one.folder.name.partition("-")[2] for one in find_runs(Path("output"))} == {"lora_rank-2", "lora_rank-4"}
