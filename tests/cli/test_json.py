"""The commands that explain a run say the same to programs: one JSON object on standard output, nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmtune.cli import warm
from llmtune.cli.main import main

TINY = ["--model_type", "llmtune-tiny", "--dataset", "tiny-qa#20"]


def printed(capsys: Any, *argv: str) -> dict[str, Any]:
    assert main([*argv, "--json", "true"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def rows(tmp_path) -> str:
    lines = ['{"query": "a", "response": "bcd"}', "{", '{"foo": 1}', '{"query": "What?", "response": "That."}'] * 3
    (tmp_path / "my.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "my.jsonl")


def test_check(capsys, rows):
    words = ["--model_type", "llmtune-tiny", "--dataset", rows, "--dataset_test_ratio", "0"]
    found = printed(capsys, "check", *words, "--rows", "2", "--max_length", "64")
    assert found["statistics"]["rows"] == "6"
    assert [one["location"] for one in found["left_out"]] == ["line 2", "line 3", "line 6", "line 7", "line 10"]
    assert all(one["source"] == rows and one["reason"] for one in found["left_out"])
    assert found["lengths"]["cut"] == 64
    assert sum(found["lengths"]["counts"]) == 6
    assert len(found["lengths"]["edges"]) == len(found["lengths"]["counts"]) + 1
    first, _ = found["samples"]
    (part,) = first["parts"]
    trainable = "".join(token["text"] for token in part["tokens"] if token["trainable"])
    assert trainable == "bcd<|im_end|>"
    assert first["length"] == len(part["tokens"])


def test_check_prints_each_row_once(capsys, rows):
    assert main(["check", "--model_type", "llmtune-tiny", "--dataset", rows, "--rows", "1"]) == 0
    assert capsys.readouterr().out.count("<|im_start|>assistant") == 1


def test_check_of_prompts_has_what_the_rewards_give(capsys):
    words = ["grpo", "--model_type", "llmtune-tiny", "--dataset", "tiny-sums#4", "--rewards", "accuracy"]
    assert "reward accuracy" in printed(capsys, "check", *words)["statistics"]


def test_plan(capsys):
    found = printed(capsys, "plan", *TINY, "--gpu", "24GB")
    assert found["fits"] is True
    assert found["total"] == sum(size for name, size in found["memory"].items() if name != "rollouts")
    assert found["usable"] > 20 * 2**30
    assert found["steps"] == 2
    found = printed(capsys, "plan", "--model_type", "llmtune-tiny", "--dataset", "tiny-qa", "--gpu", "0.01GB",
                    "--batch_size", "64", "--sft_type", "full")  # fmt: skip
    assert found["fits"] is False
    assert all(one["flags"].startswith("--") and one["total"] for one in found["suggestions"])


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_dry_run(capsys, stage):
    words = (
        TINY if stage == "sft" else ["--model_type", "llmtune-tiny", "--dataset", "tiny-sums", "--rewards", "accuracy"]
    )
    found = printed(capsys, stage, *words, "--dry_run", "true", "--use_flash_attn", "true")
    assert found["rows"]["model"].startswith("llmtune-tiny")
    assert isinstance(found["lacks"], list)
    assert any("--use_flash_attn" in note for note in found["notes"])


@pytest.mark.medium
def test_eval(capsys, tmp_path):
    words = ["--model_type", "llmtune-tiny", "--load_args_from_ckpt_dir", "false", "--val_dataset", "tiny-qa#4"]
    found = printed(capsys, "eval", *words, "--metrics", "loss", "--result_dir", str(tmp_path))
    assert [scores["loss"] > 0 for scores in found.values()] == [True]


# The process that answers again and again


def test_answers_are_facts_or_one_error(tmp_path):
    cases: list[tuple[dict[str, Any], str]] = [
        ({"command": "plan", "argv": TINY}, "fits"),
        ({"command": "check", "argv": [*TINY, "--rows", "1"]}, "samples"),
        ({"command": "dry_run", "stage": "sft", "argv": TINY}, "rows"),
        ({"command": "dry_run", "argv": [*TINY, "--lora_rank", "0"]}, "--lora_rank must be 1 or more"),
        ({"command": "dry_run", "stage": "nowhere", "argv": TINY}, "There is no stage"),
        ({"command": "rm", "argv": []}, "command is one of"),
        ({"command": "check", "argv": 3}, "TypeError"),
        ({"command": "check", "argv": ["--help"]}, "SystemExit"),
    ]
    for number, (request, expected) in enumerate(cases):
        found = warm.answer({"id": number, **request})
        assert found["id"] == number
        assert expected in (found["facts"] if "facts" in found else found["error"]), found


@pytest.mark.slow
def test_one_process_answers_until_its_input_ends():
    requests = [{"id": one, "command": "plan", "argv": TINY} for one in range(3)]
    text = "".join(json.dumps(one) + "\n" for one in requests)
    ended = subprocess.run(
        [sys.executable, "-m", "llmtune.cli.warm"], input="no json\n[]\n" + text, capture_output=True, text=True,
        cwd=Path(__file__).parents[2], check=True,
    )  # fmt: skip
    ready, *answers = map(json.loads, ended.stdout.splitlines())
    assert ready == {"ready": True}
    assert [(one["id"], one["facts"]["fits"]) for one in answers] == [(0, True), (1, True), (2, True)]


def test_it_ends_when_idle(monkeypatch):
    monkeypatch.setattr(warm, "IDLE_SECONDS", 0.05)

    class Silent:
        def __iter__(self) -> Any:
            import time

            time.sleep(1)
            return iter(())

    assert list(warm._requests(Silent())) == []  # type: ignore[arg-type]
