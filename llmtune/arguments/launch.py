"""Flags of `llmtune launch`: the resources of a job, and their checks."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llmtune.arguments.fields import Problems, at_least, check_rules, limited

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
    """Write an sbatch script for SLURM: torchrun on every node, requeued when the time limit is reached."""
    sky: bool = False
    """Write a task for SkyPilot, which rents the machines."""
    ray: bool = False
    """Write a Ray job: Ray Train starts the processes. Run it on a machine of the cluster."""
    dry_run: bool = False
    """Print the file; submit nothing."""
    output: str | None = None
    """File to write. Default: JOB_NAME.sbatch, .sky.yaml or .ray.py in this folder; with --dry_run, none."""
    job_name: str | None = None
    """Name of the job. Default: the model's."""
    nodes: str = "1"
    """Number of machines; auto: as few as the run fits on, by its plan for the GPUs of --accelerator."""
    gpus: int = limited(1, at_least(0))
    """GPUs per machine, one process each; 0: one CPU process per machine."""
    accelerator: str | None = None
    """GPU type, as the scheduler names it (A100). SkyPilot needs it."""
    cpus: int | None = limited(None, at_least(1))
    """CPU cores per machine. Default: the scheduler's."""
    memory: int | None = limited(None, at_least(1))
    """GB of memory per machine. Default: the scheduler's."""
    workdir: str | None = None
    """Folder that relative paths start from: shared by all machines on SLURM and Ray (default: this one); SkyPilot
    uploads it."""
    env: list[str] = field(default_factory=list)
    """Environment variables to pass on, by name (HF_TOKEN). Values are never written."""
    setup: str | None = None
    """Shell lines to run first: on SLURM in the job (`source .venv/bin/activate`), on SkyPilot once per machine (`pip
    install`)."""
    container: str | None = None
    """Container image: SLURM with pyxis, SkyPilot with docker."""
    time: str | None = None
    """SLURM: time limit, 24:00:00 or 2-12:00:00 (days-hours). Default: the partition's."""
    partition: str | None = None
    """SLURM: partition."""
    account: str | None = None
    """SLURM: account to charge."""
    grace: int = limited(120, at_least(1))
    """SLURM: seconds before the time limit at which the run is signalled to save. Large models need more."""
    cloud: str | None = None
    """SkyPilot: where to run (aws, gcp/us-central1, kubernetes). Default: the cheapest."""
    spot: bool = False
    """SkyPilot: spot instances; after preemption, the job moves to other machines and resumes. Needs --bucket."""
    bucket: str | None = None
    """SkyPilot: bucket for the checkpoints (s3://NAME), kept when the machines are gone."""

    def __post_init__(self) -> None:
        problems = Problems()
        chosen = [f"--{name}" for name in FOREIGN if getattr(self, name)]
        problems.need(
            len(chosen) == 1,
            f"{' and '.join(chosen)}: use one of them." if chosen else "Choose a scheduler: --slurm, --sky or --ray.",
        )
        check_rules(self, problems)
        self.nodes = str(self.nodes)
        problems.need(
            self.nodes == "auto" or (self.nodes.isdecimal() and int(self.nodes) > 0),
            f"--nodes must be a number of machines, or auto, not {self.nodes!r}.",
        )
        problems.need(
            self.nodes != "auto" or bool(self.gpus and self.accelerator),
            "--nodes auto plans for the GPUs of a machine: give --gpus and --accelerator, e.g. A100-80 (the names of "
            "`llmtune plan --gpu`).",
        )
        self._check_texts(problems)
        problems.need(
            not (self.sky and self.gpus and not self.accelerator),
            f"--sky needs the GPU type for --gpus {self.gpus}: add --accelerator, e.g. A100 (see `sky show-gpus`), "
            "or use --gpus 0.",
        )
        problems.need(
            not (self.sky and self.spot and not self.bucket),
            "--spot machines lose their disks: add --bucket s3://NAME to keep the checkpoints.",
        )
        problems.raise_if_any()

    def _check_texts(self, problems: Problems) -> None:
        problems.need(
            self.job_name is None or NAME.fullmatch(self.job_name) is not None,
            f"--job_name {self.job_name!r} may only contain letters, digits, dots, dashes and underscores.",
        )
        for name in ("accelerator", "container", "partition", "account", "cloud"):
            value = getattr(self, name)
            problems.need(
                value is None or re.fullmatch(r"\S+", value) is not None, f"--{name} {value!r} must not contain spaces."
            )
        problems.need(
            self.time is None or TIME.fullmatch(self.time) is not None,
            f"--time {self.time} is not a time limit: use 24:00:00, or 2-12:00:00 for two and a half days.",
        )
        problems.need(
            self.bucket is None or BUCKET.fullmatch(self.bucket) is not None,
            f"--bucket {self.bucket} is not a bucket URL: use s3://NAME or gs://NAME.",
        )
        secret = SECRET.search(self.setup or "")
        problems.need(
            secret is None,
            f"--setup sets {secret[0] if secret else ''} and would be written to a file that others can read: export "
            "it in your shell, and pass it on with --env.",
        )
        problems.need(
            self.workdir is None or Path(self.workdir).expanduser().is_dir(),
            f"--workdir {self.workdir}: there is no such folder.",
        )
        for name in self.env:
            problems.need(
                VARIABLE.fullmatch(name) is not None,
                f"--env {name.partition('=')[0]}: give the name only. Its value is read from your shell and is "
                "never written.",
            )

    @property
    def scheduler(self) -> Scheduler:
        return next(name for name in FOREIGN if getattr(self, name))

    @property
    def num_nodes(self) -> int:
        """Machines, once `auto` is resolved."""
        return int(self.nodes)

    def processes(self) -> int:
        """Processes per machine."""
        return max(self.gpus, 1)

    def unused_flags(self) -> list[str]:
        """Flags that were given and do not apply to this scheduler."""
        fields = LaunchArguments.__dataclass_fields__
        unused = [name for name in FOREIGN[self.scheduler] if getattr(self, name) != fields[name].default]
        return [f"--{name}" for name in [*unused, *(["accelerator"] if self.accelerator and not self.gpus else [])]]
