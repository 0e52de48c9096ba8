"""A job for a Ray cluster, as a Python file: Ray Train sets up the processes, in each of which `llmtune sft` runs.

Source: https://docs.ray.io/en/latest/train/api/doc/ray.train.torch.TorchTrainer.html. Ray Train brings the process
group and torchrun's variables (RANK, LOCAL_RANK, WORLD_SIZE ...), read in ray 2.60, ray/train/torch/config.py.
"""

from __future__ import annotations

import json
from typing import Any

from llmtune.launch.job import Job

FILE = '''\
"""{name}: llmtune sft on {size}. Written by llmtune launch --ray.

Start it with Python on a machine of the cluster; from elsewhere, with ray job submit --address http://HEAD:8265.
Where no cluster runs, it makes one of this machine. All machines must see WORKDIR and have llmtune installed.
"""

import os
import sys
import time

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

WORKDIR = {workdir}
OUTPUT_DIR = {output_dir}
VARIABLES = {variables}  # of this shell, for all processes
SFT = {words}


def main() -> None:
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        sys.exit(f"{{', '.join(missing)}}: not set. Export it before this job is started.")
    environment = {{name: os.environ[name] for name in VARIABLES}}
    folder = os.path.join(WORKDIR, OUTPUT_DIR, time.strftime("ray-%Y%m%d-%H%M%S"))
{flags}

    def train() -> None:
        os.environ.update(environment)
        os.chdir(WORKDIR)
        from llmtune.cli.sft import run

        sys.argv = ["llmtune", "sft", *flags]  # for the report
        run(flags)

    trainer = TorchTrainer(
        train,
        scaling_config=ScalingConfig({scaling}),
        run_config=RunConfig(
            name="ray",
            storage_path=folder,
            failure_config=FailureConfig(max_failures={failures}),
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    ray.init()
    main()
'''

GOING_ON = """\
    # Its own folder, so that `last` is this job's run: after a failure it resumes from the last checkpoint.
    flags = [*SFT, "--output_dir", folder, "--resume_from_checkpoint", "last"]"""

AS_GIVEN = "    flags = SFT"

FAILURES = 3
"""How often Ray restarts all processes after one has died."""


def ray_text(job: Job, workdir: str) -> str:
    """Return the job file. `workdir`: the default working folder."""
    launch = job.launch
    scaling: dict[str, Any] = {"num_workers": launch.nodes * launch.processes(), "use_gpu": launch.gpus > 0}
    if launch.cpus:
        scaling["resources_per_worker"] = {"CPU": max(launch.cpus // launch.processes(), 1)}
        if launch.gpus:
            scaling["resources_per_worker"]["GPU"] = 1
    if launch.accelerator and launch.gpus:
        scaling["accelerator_type"] = launch.accelerator
    return FILE.format(
        name=job.name,
        size=job.size(),
        workdir=_literal(launch.workdir or workdir),
        output_dir=_literal(job.output_dir),
        variables=_literal(launch.env),
        words="[\n" + "".join(f"    {_literal(word)},\n" for word in job.words) + "]",
        flags=GOING_ON if job.own_folder else AS_GIVEN,
        scaling=", ".join(f"{name}={_literal(value)}" for name, value in scaling.items()),
        failures=FAILURES if job.resumable else 0,
    )


def _literal(value: Any) -> str:
    """Python literal with double quotes."""
    return repr(value) if isinstance(value, bool) else json.dumps(value, ensure_ascii=False)
