"""qwen2.5-7b-instruct: llmtune sft on 2 machines with one process on the CPU each. Written by llmtune launch --ray.

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
OUTPUT_DIR = "output"
VARIABLES = []  # of this shell, for all processes
SFT = [
    "--model_type",
    "qwen2.5-7b-instruct",
    "--sft_type",
    "full",
    "--deepspeed_config_path",
    "zero3",
    "--dataset",
    "tiny-qa",
]


def main() -> None:
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        sys.exit(f"{', '.join(missing)}: not set. Export it before this job is started.")
    environment = {name: os.environ[name] for name in VARIABLES}
    folder = os.path.join(WORKDIR, OUTPUT_DIR, time.strftime("ray-%Y%m%d-%H%M%S"))
    flags = SFT

    def train() -> None:
        os.environ.update(environment)
        os.chdir(WORKDIR)
        from llmtune.cli.stages import run_stage

        run_stage("sft", flags)

    trainer = TorchTrainer(
        train,
        scaling_config=ScalingConfig(num_workers=2, use_gpu=False),
        run_config=RunConfig(
            name="ray",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    ray.init()
    main()
