"""The embedded model's own scripts run in every mode that a CPU can; estimates are those of plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from .. import prepared
from ..waiting import SECONDS
from .table import LLMTUNE, OURS, ROOT, SCRIPTS, TABLE

ACTIVE = {
    "lora": "Trainable parameters: 108,544 of 2,077,632",
    "qlora": "28 of 29 linear layers in 4 bits",
    "full": "Trainable parameters: 1,969,088 of 1,969,088",
    "lora_ddp": "DDP over 2 processes (gloo)",
    "full_ddp": "DDP over 2 processes (gloo)",
    "lora_ddp_ds": "DeepSpeed ZeRO-2 over 2 processes (gloo)",
    "full_ddp_ds": "DeepSpeed ZeRO-3 over 2 processes (gloo)",
    "full_ddp_fsdp": "FSDP2 over 2 processes (gloo), ",
}


ANSWERING = ("lora", "qlora", "full_ddp_ds", "full_ddp_fsdp")
"""Modes whose checkpoints differ in kind; the others' infer.sh is one of these but for its path."""


def test_every_tiny_mode_is_run():
    assert set(ACTIVE) == {row["mode"] for row in OURS if row["model"] == "llmtune-tiny"}


BY_HAND = "full_ddp_ds"
"""Its sft.sh starts what a user's does: bash, llmtune, torchrun, two processes. The others' words are run prepared."""
SHORT = ("--max_steps", "2", "--eval_steps", "2", "--save_steps", "2", "--dataset", "tiny-qa#60")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ACTIVE)
def test_tiny_runs_and_answers(mode, tmp_path, said):
    def run(name, *flags):
        gpus, *words = said(f"llmtune_tiny/{mode}/{name}", *flags, cwd=tmp_path)
        nproc = int(words[words.index("--nproc") + 1]) if "--nproc" in words else 1
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpus}
        started = prepared.start(
            *prepared.LLMTUNE, *words, folder=tmp_path, cwd=tmp_path, nproc=nproc, environment=environment
        )
        started.check()
        return started.said()

    text = start_by_hand(mode, tmp_path) if mode == BY_HAND else run("sft.sh", *SHORT)
    assert ACTIVE[mode] in text
    (checkpoint,) = tmp_path.glob("output/llmtune-tiny/v0-*/checkpoint-2")
    if mode not in ANSWERING:
        return
    text = run("infer.sh", "--show_dataset_sample", "1", "--max_new_tokens", "4")
    assert "[OUTPUT]" in text
    (result,) = checkpoint.glob("infer_result_*.jsonl")
    assert json.loads(result.read_text(encoding="utf-8"))["query"]


def start_by_hand(mode, folder):
    stub = folder / "bin/llmtune"
    stub.parent.mkdir()
    stub.write_text(f"#!/usr/bin/env bash\n{LLMTUNE}\n")
    stub.chmod(0o755)
    environment = os.environ | {"PATH": f"{stub.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    command = ["bash", SCRIPTS / "llmtune_tiny" / mode / "sft.sh", *SHORT]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=SECONDS)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_an_estimate_is_that_of_plan():
    """python scripts/estimate.py writes them; one of them stands for all, which take two minutes."""
    code = (
        "import estimate, json\n"
        "configs = json.loads((estimate.HERE / 'configs.json').read_text())\n"
        "(mode,) = [one for one in estimate.read_table() if one.folder == 'qwen2_5_0_5b_instruct/qlora_ddp_ds']\n"
        "print(estimate.estimate(mode, configs[mode.model]))"
    )
    environment = os.environ | {"PYTHONPATH": f"{SCRIPTS}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPTS, env=environment)
    assert done.returncode == 0, done.stderr
    noted = json.loads((SCRIPTS / "estimates.json").read_text(encoding="utf-8"))["qwen2.5-0.5b-instruct/qlora_ddp_ds"]
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(noted, rel=0.1)


def test_every_row_without_a_note_has_an_estimate():
    noted = json.loads((SCRIPTS / "estimates.json").read_text(encoding="utf-8"))
    assert set(noted) == {f"{row['model']}/{row['mode']}" for row in TABLE if not row["memory"]}
