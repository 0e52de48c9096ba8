"""Several processes: each strategy is really active, computes what one process computes, saves what everyone loads,
and goes on where it stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmtune import SftArguments, sft

from ..launched import RUN, launch, newest, records, start
from ..waiting import SECONDS, until

pytestmark = pytest.mark.slow

has_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: pip install 'llmtune[deepspeed]'"
)
TOGETHER = {"nproc": 2, "gradient_accumulation_steps": 2}
STRATEGIES = [
    pytest.param({}, "DDP over 2 processes (gloo)", id="ddp"),
    pytest.param(
        {"fsdp": True, "async_save": True, "fsdp_offload": True},
        "FSDP2 over 2 processes (gloo), 50.0% of the weights each",
        id="fsdp, offloaded, saved meanwhile",
    ),
    pytest.param(
        {"deepspeed_config_path": "zero2"}, "DeepSpeed ZeRO-2 over 2 processes", id="zero2", marks=has_deepspeed
    ),
    pytest.param(
        {"deepspeed_config_path": "zero3_offload", "padding_free": True},  # auto cannot try a model in shards
        "ZeRO-3 over 2 processes",
        id="zero3_offload",
        marks=has_deepspeed,
    ),
]
WHOLE = [
    pytest.param({"fsdp": True}, "FSDP2 over 2 processes", id="fsdp"),
    pytest.param({"deepspeed_config_path": "zero2_offload"}, "ZeRO-2", id="zero2_offload", marks=has_deepspeed),
    pytest.param({"deepspeed_config_path": "zero3"}, "ZeRO-3 over 2 processes", id="zero3", marks=has_deepspeed),
]


def alone(folder: Path, **settings: Any) -> Path:
    """The same in one process: as many samples a step."""
    return sft(
        SftArguments(**(RUN | {"gradient_accumulation_steps": 4, "output_dir": str(folder)} | settings))
    ).output_dir


@pytest.fixture(scope="module")
def lora(tmp_path_factory) -> Path:
    return alone(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    return alone(tmp_path_factory.mktemp("full"), sft_type="full")


def check_equal(run: Path, expected: Path) -> None:
    for name, tolerance in (("loss", 1e-5), ("grad_norm", 1e-3), ("eval_loss", 1e-5)):
        ours, theirs = records(run, name), records(expected, name)
        assert ours.keys() == theirs.keys()
        assert len(ours) > 1
        for step in ours:
            assert ours[step] == pytest.approx(theirs[step], rel=tolerance), (name, step)


def check_tokens(run: Path, expected: Path) -> None:
    """What is counted is counted over all processes, and what only fills up is not."""
    ours, theirs = (json.loads((folder / "train_results.json").read_text()) for folder in (run, expected))
    for name in ("useful_tokens", "trainable_tokens"):
        assert ours[name] == theirs[name] > 0
    assert ours["computed_tokens"] - theirs["computed_tokens"] < 2 * 64


def check_weights(run: Path, expected: Path) -> None:
    """The last checkpoint, read by safetensors alone: the ecosystem's names, and the weights of one process."""
    (file,) = (run / "checkpoint-12").glob("*.safetensors")
    ours, theirs = load_file(file), load_file(expected / "checkpoint-12" / file.name)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize(("strategy", "active"), STRATEGIES)
def test_as_one_process_and_resumed(tmp_path, lora, strategy, active):
    run = launch(tmp_path, **TOGETHER, **strategy)
    assert active in (run / "report.md").read_text()
    assert ("written in the background" in (tmp_path / "said.err").read_text()) == ("async_save" in strategy)
    check_equal(run, lora)
    check_tokens(run, lora)
    check_weights(run, lora)
    before = records(run)
    for step in (6, 8, 12):  # at 6, an evaluation found a new best
        shutil.rmtree(run / f"checkpoint-{step}", ignore_errors=step == 6)
    launch(tmp_path, **TOGETHER, **strategy, resume_from_checkpoint="last")
    assert newest(tmp_path) == run
    lines = [json.loads(line) for line in (run / "logging.jsonl").read_text().splitlines()]
    assert [line["global_step"] for line in lines if "loss" in line] == [*range(1, 13), *range(5, 13)]
    assert records(run) == before
    check_weights(run, lora)


def test_each_process_goes_on_with_its_own_chance(tmp_path):
    settings = TOGETHER | {"lora_dropout_p": 0.2, "eval_strategy": "no"}
    run = launch(tmp_path, **settings)
    before = records(run)
    for step in (8, 12):
        shutil.rmtree(run / f"checkpoint-{step}")
    launch(tmp_path, **settings, resume_from_checkpoint=str(run))
    assert records(run) == before


@pytest.mark.parametrize(("strategy", "active"), WHOLE)
def test_full_fine_tuning_on_two_processes_equals_one(tmp_path, full, strategy, active):
    run = launch(tmp_path, **TOGETHER, **strategy, sft_type="full", predict_with_generate=False)
    assert active in (run / "report.md").read_text()
    check_equal(run, full)
    check_weights(run, full)


def test_another_number_of_processes(tmp_path, lora):
    """From two to one, in the second pass over the data: the same samples a step."""
    run = launch(tmp_path, **TOGETHER)
    shutil.rmtree(run / "checkpoint-12")
    result = alone(tmp_path, resume_from_checkpoint=str(run))
    assert result == run
    check_equal(run, lora)


def test_packed_with_generated_answers(tmp_path):
    settings = {"packing": True, "max_length": 128, "predict_with_generate": True, "max_new_tokens": 4, "eval_steps": 3}
    settings |= {"dataset": ["tiny-qa#48"], "num_train_epochs": 1, "batch_size": 1, "do_sample": False}
    run = launch(tmp_path / "two", **TOGETHER, **settings)
    expected = alone(tmp_path / "one", **settings)
    check_equal(run, expected)
    assert records(run, "eval_rouge-l") == pytest.approx(records(expected, "eval_rouge-l"))


def test_sigterm_saves_and_is_no_failure(tmp_path):
    process = start(tmp_path, **TOGETHER, max_steps=400, save_steps=1000, eval_strategy="no")
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("step 3/"):
            process.send_signal(signal.SIGTERM)
            break
    rest, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said + rest
    assert "SIGTERM: saving a checkpoint after this step, then stopping" in rest
    assert len(list(newest(tmp_path).glob("checkpoint-*/rng_state_1.pth"))) == 1


def test_torchrun_starts_a_killed_process_again(tmp_path, lora):
    """One of two is killed: both start again, from the last checkpoint of this run and not of an older one."""
    older = launch(tmp_path, gradient_accumulation_steps=4, max_steps=4)
    process = start(tmp_path, **TOGETHER, max_restarts=1)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 6/"):
            os.kill(max(children(process.pid)), signal.SIGKILL)
            break
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, out[-5000:]
    run = newest(tmp_path)
    assert run != older
    assert len(list(run.parent.iterdir())) == 2
    assert records(run) == pytest.approx(records(lora), rel=1e-5)


def test_the_error_of_a_process_is_one_line(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "no response"}\n', encoding="utf-8")  # the starting process does not read it
    process = start(tmp_path, **TOGETHER, dataset=[str(rows)])
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "Traceback" not in out
    assert str(rows) in out
    assert out.splitlines()[-1].startswith("llmtune: rank ")


def children(pid: int) -> list[int]:
    import psutil

    def found() -> list[int]:
        return [child.pid for child in psutil.Process(pid).children() if "sft" in child.cmdline()]

    until(lambda: len(found()) == 2)
    return found()
