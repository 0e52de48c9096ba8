"""Write the jobs of `llmtune launch`, as files to review: `make golden`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmtune.arguments.launch import LaunchArguments
from llmtune.arguments.parser import parse
from llmtune.arguments.stage import SftArguments
from llmtune.launch.job import Job, make_job
from llmtune.launch.schedulers import ray_text, sky_text, slurm_text

FOLDER = Path(__file__).parent / "launch"
WORKDIR = "/shared/runs"

LORA = [
    *("--model_type", "qwen2.5-7b-instruct", "--dataset", "my data.jsonl", "tiny-qa#200"),
    *("--system", "You're $HOME's \"helper\".\nBe brief.", "--output_dir", "out put", "--packing", "true"),
]
FULL = [
    "--model_type",
    "qwen2.5-7b-instruct",
    "--sft_type",
    "full",
    "--deepspeed_config_path",
    "zero3",
    "--dataset",
    "tiny-qa",
]

# name -> the job's settings, and the flags of sft
JOBS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "lora.sbatch": (
        {
            "slurm": True,
            "nodes": 2,
            "gpus": 8,
            "accelerator": "a100",
            "cpus": 64,
            "memory": 500,
            "time": "24:00:00",
            "partition": "gpu",
            "account": "lab",
            "job_name": "answers",
            "env": ["HF_TOKEN"],
            "setup": "module load cuda\nsource .venv/bin/activate",
            "container": "nvcr.io/nvidia/pytorch:26.06-py3",
        },
        LORA,
    ),
    "full.sbatch": ({"slurm": True, "nodes": 1, "gpus": 4}, FULL),
    "lora.sky.yaml": (
        {
            "sky": True,
            "nodes": 2,
            "gpus": 8,
            "accelerator": "A100",
            "cpus": 32,
            "memory": 256,
            "spot": True,
            "bucket": "s3://answers",
            "cloud": "aws/us-east-1",
            "env": ["HF_TOKEN", "WANDB_API_KEY"],
        },
        LORA,
    ),
    "full.sky.yaml": (
        {"sky": True, "gpus": 1, "accelerator": "H100", "container": "llmtune:latest"},
        [*FULL, "--only_save_model", "false", "--resume_from_checkpoint", "last"],
    ),
    "lora.ray.py": (
        {"ray": True, "nodes": 2, "gpus": 8, "accelerator": "A100", "cpus": 64, "env": ["HF_TOKEN"]},
        LORA,
    ),
    "full.ray.py": ({"ray": True, "nodes": 2, "gpus": 0}, FULL),
}


def make(name: str) -> Job:
    settings, words = JOBS[name]
    return make_job(LaunchArguments(**settings), parse(SftArguments, words, command="sft"), words)


def text_of(name: str) -> str:
    job = make(name)
    if job.launch.slurm:
        return slurm_text(job)
    return sky_text(job) if job.launch.sky else ray_text(job, WORKDIR)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for file in FOLDER.iterdir():
        file.unlink()
    for name in JOBS:
        (FOLDER / name).write_text(text_of(name), encoding="utf-8")


if __name__ == "__main__":
    main()
