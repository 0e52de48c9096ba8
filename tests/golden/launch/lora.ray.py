"""qwen2.5-7b-instruct: llmtune sft on 2 machines with 8 GPUs each. Written by llmtune launch --ray.

Start it with Python on a machine of the cluster; from elsewhere, with ray job submit --address http://HEAD:8265.
Where no cluster runs, it makes one of this machine. All machines must see WORKDIR and have llmtune installed.
"""

import os
import sys
import time

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

WORKDIR = "/shared/runs"
OUTPUT_DIR = "out put"
VARIABLES = ["HF_TOKEN"]  # of this shell, for all processes
SFT = [
    "--model_type",
    "qwen2.5-7b-instruct",
    "--dataset",
    "my data.jsonl",
    "tiny-qa#200",
    "--system",
    "You're $HOME's \"helper\".\nBe brief.",
    "--packing",
    "true",
]


def main() -> None:
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        sys.exit(f"{', '.join(missing)}: not set. Export it before this job is started.")
    environment = {name: os.environ[name] for name in VARIABLES}
    folder = os.path.join(WORKDIR, OUTPUT_DIR, time.strftime("ray-%Y%m%d-%H%M%S"))
    # Its own folder, so that `last` is this job's run: after a failure it resumes from the last checkpoint.
    flags = [*SFT, "--output_dir", folder, "--resume_from_checkpoint", "last"]

    def train() -> None:
        os.environ.update(environment)
        os.chdir(WORKDIR)
        from llmtune.cli.stages import run_stage

        run_stage("sft", flags)

    trainer = TorchTrainer(
        train,
        scaling_config=ScalingConfig(num_workers=16, use_gpu=True, resources_per_worker={"CPU": 8, "GPU": 1}, accelerator_type="A100"),
        run_config=RunConfig(
            name="ray",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=3),
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    ray.init()
    main()
