"""scripts/finetune.sh: the variables and flags of the Qwen guide."""

from __future__ import annotations

import os
import subprocess

import pytest

from .table import LLMTUNE, SCRIPTS


@pytest.mark.parametrize(
    ("flags", "variables", "expected"),
    [
        (
            "-m a/b -d x.jsonl",
            {},
            "--model_id_or_path a/b --dataset x.jsonl --output_dir output --sft_type full --nproc 1",
        ),
        ("--model llmtune-tiny --data tiny-qa", {}, "--model_type llmtune-tiny --dataset tiny-qa"),
        ("", {"MODEL": "a/b", "DATA": "x y"}, "--model_id_or_path a/b --dataset x y"),
        ("-m a/b -d x", {"GPUS_PER_NODE": "4"}, "--sft_type full --nproc 4 --deepspeed_config_path zero3"),
        ("-m a/b -d x", {"CUDA_VISIBLE_DEVICES": "2,5"}, "--nproc 2 --deepspeed_config_path zero3"),
        (
            "-m a/b -d x",
            {"CUDA_VISIBLE_DEVICES": "0,1", "USE_LORA": "True"},
            "lora --nproc 2 --deepspeed_config_path zero2",
        ),
        ("-m a/b -d x --use_lora True", {}, "--sft_type lora --nproc 1"),
        ("-m a/b -d x", {"Q_LORA": "True"}, "--sft_type lora --quantization_bit 4 --nproc 1"),
        ("-m Qwen/Qwen-7B-Chat-Int4 -d x --q_lora True", {}, "--sft_type lora --nproc 1"),
        ("-m a/b -d x", {"USE_LORA": "False", "Q_LORA": "False"}, "--sft_type full --nproc 1"),
        ("-m a/b -d x --deepspeed finetune/ds_config_zero2.json", {}, "--nproc 1 --deepspeed_config_path zero2"),
        ("-m a/b -d x", {"DS_CONFIG_PATH": "zero3_offload"}, "--deepspeed_config_path zero3_offload"),
        ("-m a/b -d x --deepspeed none", {"GPUS_PER_NODE": "2"}, "--sft_type full --nproc 2"),
        ("-m a/b -d x", {"GPUS_PER_NODE": "1", "NNODES": "2"}, "--nproc 1 --deepspeed_config_path zero3"),
        ("-m a/b -d x", {"OUTPUT_DIR": "runs"}, "--output_dir runs"),
        ("-m a/b -d x --max_length 64 --packing true", {}, "--nproc 1 --max_length 64 --packing true"),
    ],
)
def test_finetune(said, flags, variables, expected):
    gpus, command, *words = said("finetune.sh", *flags.split(), **({"CUDA_VISIBLE_DEVICES": ""} | variables))
    assert command == "sft"
    text = " ".join(words)
    assert expected in text
    assert ("--deepspeed_config_path" in text) == ("--deepspeed_config_path" in expected)
    assert ("--quantization_bit" in text) == ("--quantization_bit" in expected)
    assert gpus == variables.get("CUDA_VISIBLE_DEVICES", "")


def test_finetune_below_a_base_path(said, tmp_path):
    (tmp_path / "models/mine").mkdir(parents=True)
    (tmp_path / "my rows.jsonl").touch()
    variables = {"BASE_PATH": str(tmp_path), "MODEL": "models/mine", "OUTPUT_DIR": "runs", "CUDA_VISIBLE_DEVICES": ""}
    _, _, *words = said("finetune.sh", DATA="my rows.jsonl", **variables)
    assert words[:6] == [
        *("--model_id_or_path", f"{tmp_path}/models/mine", "--dataset", f"{tmp_path}/my rows.jsonl"),
        *("--output_dir", f"{tmp_path}/runs"),
    ]
    _, _, *words = said("finetune.sh", DATA="tiny-qa", **variables)
    assert words[3] == "tiny-qa"


def finetune(*flags, folder, llmtune="exit 9", **variables):
    """Run it with an `llmtune` of this body."""
    stub = folder / "bin/llmtune"
    stub.parent.mkdir(exist_ok=True)
    stub.write_text(f"#!/usr/bin/env bash\n{llmtune}\n")
    stub.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in ("NNODES", "MODEL", "DATA")}
    environment = kept | {"PATH": f"{stub.parent}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""} | variables
    command = ["bash", SCRIPTS / "finetune.sh", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def test_finetune_usage(tmp_path):
    for flag in ("-h", "--help"):
        done = finetune(flag, folder=tmp_path)
        assert done.returncode == 0
        variables = "MODEL DATA DS_CONFIG_PATH USE_LORA Q_LORA OUTPUT_DIR GPUS_PER_NODE NNODES NODE_RANK MASTER_ADDR"
        assert all(name in done.stdout for name in [*variables.split(), "MASTER_PORT", "BASE_PATH", "--deepspeed"])
    for flags, said in ([(), "-m MODEL"], [("-m", "a/b"), "-d DATA"], [("-m",), "-m needs a value"]):
        done = finetune(*flags, folder=tmp_path)
        assert done.returncode == 2
        assert said in done.stderr


def test_finetune_on_several_machines(tmp_path):
    """Its variables reach torchrun's own line."""
    variables = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "GPUS_PER_NODE": "8", "USE_LORA": "True"}
    flags = ["-m", "Qwen/Qwen2.5-7B-Instruct", "-d", "alpaca-zh", "--dry_run", "true"]
    done = finetune(*flags, folder=tmp_path, llmtune=LLMTUNE, **variables)
    assert done.returncode == 0, done.stderr
    assert "--nproc_per_node 8 --nnodes 2 --node_rank 1 --master_addr 10.0.0.1 --master_port 29500" in done.stdout
    assert "ZeRO-2" in done.stdout
    assert "256 samples (1 x 16 x 16 processes)" in done.stdout


@pytest.mark.slow
def test_finetune_runs(tmp_path):
    flags = ["-m", "llmtune-tiny", "-d", "tiny-qa#40", "--use_lora", "True", "--max_steps", "2"]
    done = finetune(*flags, folder=tmp_path, llmtune=LLMTUNE, OUTPUT_DIR="runs")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("runs/llmtune-tiny/v0-*/checkpoint-2/adapter_model.safetensors"))
