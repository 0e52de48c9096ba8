"""The flags of `llmtune launch`: what a job asks its scheduler for, and what of them contradicts itself."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llmtune.arguments.checks import Problems

__all__ = ["LaunchArguments", "Scheduler"]

Scheduler = Literal["slurm", "sky", "ray"]

FOREIGN: dict[Scheduler, tuple[str, ...]] = {
    "slurm": ("cloud", "spot", "bucket"),
    "sky": ("time", "partition", "account", "grace"),
    "ray": ("time", "partition", "account", "grace", "cloud", "spot", "bucket", "container", "setup", "memory"),
}
TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")
NAME = re.compile(r"[A-Za-z][\w.-]*")
VARIABLE = re.compile(r"[A-Za-z_]\w*")
SECRET = re.compile(r"\w*(TOKEN|API_KEY|SECRET|PASSWORD)\w*=", re.I)
BUCKET = re.compile(r"[a-z0-9]+://\S+")


@dataclass(kw_only=True)
class LaunchArguments:
    """Launch."""

    slurm: bool = False
    """Write a script for SLURM's sbatch: torchrun on every node, and back into the queue when the time is over."""
    sky: bool = False
    """Write a task for SkyPilot, which rents the machines."""
    ray: bool = False
    """Write a job for a Ray cluster: Ray Train starts the processes. Start it on one of the cluster's machines."""
    dry_run: bool = False
    """Print the file and submit nothing."""
    output: str | None = None
    """File to write. Default: JOB_NAME.sbatch, .sky.yaml or .ray.py here; with --dry_run, none."""
    job_name: str | None = None
    """Name of the job. Default: the model's."""
    nodes: int = 1
    """Machines."""
    gpus: int = 1
    """GPUs of each machine, a process for each; 0: one process a machine, on its CPU."""
    accelerator: str | None = None
    """Kind of GPU, as the scheduler calls it: A100, say. SkyPilot has to be told."""
    cpus: int | None = None
    """CPU cores of each machine. Default: what the scheduler gives."""
    memory: int | None = None
    """GB of memory of each machine. Default: what the scheduler gives."""
    workdir: str | None = None
    """Folder that the paths in the flags start from: on SLURM and Ray all machines see it (Default: this one);
    SkyPilot uploads it."""
    env: list[str] = field(default_factory=list)
    """Names of variables in your shell that the job needs, HF_TOKEN say. Values are never written."""
    setup: str | None = None
    """Shell lines: SLURM runs them first (`source .venv/bin/activate`), SkyPilot once a machine (`pip install`)."""
    container: str | None = None
    """Image that the run takes place in: SLURM's pyxis, SkyPilot's docker."""
    time: str | None = None
    """SLURM: time limit, 24:00:00 or 2-12:00:00 (days-hours). Default: the partition's."""
    partition: str | None = None
    """SLURM: partition."""
    account: str | None = None
    """SLURM: account that is charged."""
    grace: int = 120
    """SLURM: seconds before the time limit at which the run is told to save. Large models need more."""
    cloud: str | None = None
    """SkyPilot: where, as aws, gcp/us-central1 or kubernetes. Default: where it is cheapest."""
    spot: bool = False
    """SkyPilot: machines that can be taken away; the job moves on and resumes. Needs --bucket."""
    bucket: str | None = None
    """SkyPilot: bucket for the checkpoints, s3://NAME say, which outlives the machines."""

    def __post_init__(self) -> None:
        problems = Problems()
        chosen = [f"--{name}" for name in FOREIGN if getattr(self, name)]
        problems.need(
            len(chosen) == 1,
            f"{' and '.join(chosen)}: give one of them." if chosen else "Say where to: --slurm, --sky or --ray.",
        )
        for name in ("nodes", "cpus", "memory", "grace"):
            value = getattr(self, name)
            problems.need(value is None or value >= 1, f"--{name} must be 1 or more, not {value}.")
        problems.need(self.gpus >= 0, f"--gpus must be 0 or more, not {self.gpus}.")
        self._check_texts(problems)
        problems.need(
            not (self.sky and self.gpus and not self.accelerator),
            f"--sky has to know which GPU: add --accelerator A100, say (`sky show-gpus` lists them), for {self.gpus} "
            "of them a machine; or --gpus 0.",
        )
        problems.need(
            not (self.sky and self.spot and not self.bucket),
            "--spot loses the machines' disks: add --bucket s3://NAME, where the checkpoints outlive them.",
        )
        problems.raise_if_any()

    def _check_texts(self, problems: Problems) -> None:
        problems.need(
            self.job_name is None or NAME.fullmatch(self.job_name) is not None,
            f"--job_name {self.job_name!r} is made of letters, digits, dots, dashes and underscores.",
        )
        for name in ("accelerator", "container", "partition", "account", "cloud"):
            value = getattr(self, name)
            problems.need(value is None or re.fullmatch(r"\S+", value) is not None, f"--{name} {value!r} has a blank.")
        problems.need(
            self.time is None or TIME.fullmatch(self.time) is not None,
            f"--time {self.time} is no time: give 24:00:00, or 2-12:00:00 for two and a half days.",
        )
        problems.need(
            self.bucket is None or BUCKET.fullmatch(self.bucket) is not None,
            f"--bucket {self.bucket} is no address of a bucket: give s3://NAME or gs://NAME.",
        )
        secret = SECRET.search(self.setup or "")
        problems.need(
            secret is None,
            f"--setup sets {secret[0] if secret else ''} and would be written into a file that others can read: export "
            "it in your shell, and add its name with --env.",
        )
        problems.need(
            self.workdir is None or Path(self.workdir).expanduser().is_dir(),
            f"--workdir {self.workdir}: there is no such folder.",
        )
        for name in self.env:
            problems.need(
                VARIABLE.fullmatch(name) is not None,
                f"--env {name.partition('=')[0]}: give the name alone. Its value comes from your shell and is never "
                "written.",
            )

    @property
    def scheduler(self) -> Scheduler:
        return next(name for name in FOREIGN if getattr(self, name))

    def processes(self) -> int:
        """Processes of each machine."""
        return max(self.gpus, 1)

    def unused_flags(self) -> list[str]:
        """Flags that were given and mean nothing to this scheduler."""
        fields = LaunchArguments.__dataclass_fields__
        unused = [name for name in FOREIGN[self.scheduler] if getattr(self, name) != fields[name].default]
        return [f"--{name}" for name in [*unused, *(["accelerator"] if self.accelerator and not self.gpus else [])]]
