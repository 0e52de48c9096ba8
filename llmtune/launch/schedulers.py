"""The files of a job for SLURM, SkyPilot and Ray, one function per scheduler."""

from __future__ import annotations

import json
import shlex
from typing import Any

from llmtune.launch.job import Job, bash_array

# SLURM: srun starts one torchrun per node, with the variables that `llmtune sft --nproc` reads. Before the time limit
# SLURM signals the script only (B:), which signals the processes: they save and exit 0, and the job is requeued.
#
# Source: https://slurm.schedmd.com/sbatch.html (--signal, --requeue, --open-mode),
# https://slurm.schedmd.com/scancel.html (--signal without --batch or --full reaches the steps alone),
# https://github.com/NVIDIA/pyxis (--container-image).

SLURM_HEAD = """\
#!/bin/bash
# {name}: llmtune sft on {size}. Written by llmtune launch --slurm.
# All nodes must see the folder that it runs in, and its output.
"""

RENDEZVOUS = r"""export NNODES=$SLURM_JOB_NUM_NODES
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${nodes%%$'\n'*}
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
"""

STOP = """\
# {grace} seconds before the time is over: all processes save and end{then}.
stopped=
stop() {{
    stopped=yes
    scancel --signal=TERM "$SLURM_JOB_ID"
}}
trap stop USR1
"""

THEN = ", and the job queues again to go on from there"

SLURM_RUN = """\
{srun} bash -c 'NODE_RANK=$SLURM_NODEID exec "$@"' llmtune "${{sft[@]}}" &
step=$!
status=0
wait "$step" || status=$?
if [ -n "$stopped" ]; then  # what ended was the waiting, not the run
    status=0
    wait "$step" || status=$?
{requeue}fi
exit "$status"
"""

REQUEUE = '    [ "$status" -ne 0 ] || scontrol requeue "$SLURM_JOB_ID"\n'


def slurm_text(job: Job) -> str:
    """Return the sbatch script."""
    launch = job.launch
    raw = [f"--nproc {launch.processes()}"]
    if job.own_folder:
        raw += [f'--output_dir {shlex.quote(job.output_dir)}/slurm-"$SLURM_JOB_ID"', "--resume_from_checkpoint last"]
    parts = [
        SLURM_HEAD.format(name=job.name, size=job.size())
        + "".join(f"#SBATCH {line}\n" for line in _slurm_settings(job)),
        "set -e\n",
        "".join(f': "${{{name}:?is not set: export it before sbatch}}"\n' for name in launch.env),
        f"{launch.setup}\n" if launch.setup else "",
        "set -u\n" + RENDEZVOUS,  # only now: what sets up environments often reads unset variables
        bash_array("sft", ["llmtune", "sft", *job.words], raw) + "\n",
        STOP.format(grace=launch.grace, then=THEN if job.resumable else ""),
        SLURM_RUN.format(srun=_srun(job), requeue=REQUEUE if job.resumable else ""),
    ]
    return "\n".join(part for part in parts if part)


def _slurm_settings(job: Job) -> list[str]:
    launch = job.launch
    kind = f"{launch.accelerator}:" if launch.accelerator else ""
    lines: list[tuple[str, object]] = [
        ("job-name", job.name),
        ("nodes", launch.num_nodes),
        ("ntasks-per-node", 1),
        ("gpus-per-node", f"{kind}{launch.gpus}" if launch.gpus else None),
        ("cpus-per-task", launch.cpus),
        ("mem", f"{launch.memory}G" if launch.memory else None),
        ("time", launch.time),
        ("partition", launch.partition),
        ("account", launch.account),
        ("chdir", shlex.quote(launch.workdir) if launch.workdir else None),
        ("output", "%x-%j.out"),
        ("open-mode", "append"),
        ("signal", f"B:USR1@{launch.grace}"),
    ]
    requeue = "--requeue" if job.resumable else "--no-requeue"
    return [*(f"--{name}={value}" for name, value in lines if value is not None), requeue]


def _srun(job: Job) -> str:
    words = ["srun", "--kill-on-bad-exit=1"]
    if job.launch.cpus:  # srun does not take it from sbatch since SLURM 22.05
        words.append(f"--cpus-per-task={job.launch.cpus}")
    if job.launch.container:
        words.append(f"--container-image={shlex.quote(job.launch.container)}")
        words += ['--container-mounts="$PWD:$PWD"', '--container-workdir="$PWD"']
    return " ".join(words)


# SkyPilot
#
# Source: https://docs.skypilot.co/en/latest/reference/yaml-spec.html (fields),
# https://docs.skypilot.co/en/latest/running-jobs/environment-variables.html (SKYPILOT_*; the task's id stays the same
# when a managed job recovers).

SKY_HEAD = """\
# {name}: llmtune sft on {size}. Written by llmtune launch --sky.
# SkyPilot uploads workdir, less what .gitignore or .skyignore names; `sky logs` shows the run.
"""

SKY_RUN = """\
set -eu
export NNODES=$SKYPILOT_NUM_NODES NODE_RANK=$SKYPILOT_NODE_RANK
export MASTER_ADDR=${{SKYPILOT_NODE_IPS%%$'\\n'*}} MASTER_PORT=29500
{command}
exec "${{sft[@]}}"
"""

SKY_OUTPUT = "/llmtune-output"


def sky_text(job: Job) -> str:
    """Return the task file (YAML)."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Write multi-line texts as blocks."""

    def as_block(dumper: Any, text: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Dumper.add_representer(str, as_block)
    body = yaml.dump(_sky_task(job), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return SKY_HEAD.format(name=job.name, size=job.size()) + body


def _sky_task(job: Job) -> dict[str, Any]:
    launch = job.launch
    setup = launch.setup or (None if launch.container else "pip install llmtune")
    task = {
        "name": job.name,
        "num_nodes": launch.num_nodes,
        "workdir": launch.workdir or ".",
        "resources": _present(
            accelerators=f"{launch.accelerator}:{launch.gpus}" if launch.gpus else None,
            cpus=f"{launch.cpus}+" if launch.cpus else None,
            memory=f"{launch.memory}+" if launch.memory else None,
            infra=launch.cloud,
            use_spot=launch.spot or None,
            image_id=f"docker:{launch.container}" if launch.container else None,
        ),
        "secrets": dict.fromkeys(launch.env),  # null: SkyPilot asks for a value at the launch
        "file_mounts": {SKY_OUTPUT: {"source": launch.bucket, "mode": "MOUNT_CACHED"}} if launch.bucket else None,
        "setup": f"{setup.strip()}\n" if setup else None,
        "run": SKY_RUN.format(command=bash_array("sft", ["llmtune", "sft", *job.words], _sky_flags(job))),
    }
    return {name: value for name, value in task.items() if value}


def _sky_flags(job: Job) -> list[str]:
    processes = '"$SKYPILOT_NUM_GPUS_PER_NODE"' if job.launch.gpus else "1"
    flags = [f"--nproc {processes}"]
    folder = SKY_OUTPUT if job.launch.bucket else shlex.quote(job.output_dir)
    if job.own_folder:
        flags += [f'--output_dir {folder}/"$SKYPILOT_TASK_ID"', "--resume_from_checkpoint last"]
    elif job.launch.bucket:
        flags.append(f"--output_dir {folder}")
    return flags


def _present(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


# Ray: Ray Train sets up the processes, in each of which `llmtune sft` runs. It brings the process group and torchrun's
# variables (RANK, LOCAL_RANK, WORLD_SIZE ...), read in ray 2.60, ray/train/torch/config.py.
#
# Source: https://docs.ray.io/en/latest/train/api/doc/ray.train.torch.TorchTrainer.html

RAY_FILE = '''\
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
        from llmtune.cli.stages import run_stage

        run_stage("sft", flags)

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

RAY_OWN_FOLDER = """\
    # Its own folder, so that `last` is this job's run: after a failure it resumes from the last checkpoint.
    flags = [*SFT, "--output_dir", folder, "--resume_from_checkpoint", "last"]"""

RAY_AS_GIVEN = "    flags = SFT"

RAY_FAILURES = 3
"""How often Ray restarts all processes after one has died."""


def ray_text(job: Job, workdir: str) -> str:
    """Return the job file. `workdir`: the default working folder."""
    launch = job.launch
    scaling: dict[str, Any] = {"num_workers": launch.num_nodes * launch.processes(), "use_gpu": launch.gpus > 0}
    if launch.cpus:
        scaling["resources_per_worker"] = {"CPU": max(launch.cpus // launch.processes(), 1)}
        if launch.gpus:
            scaling["resources_per_worker"]["GPU"] = 1
    if launch.accelerator and launch.gpus:
        scaling["accelerator_type"] = launch.accelerator
    return RAY_FILE.format(
        name=job.name,
        size=job.size(),
        workdir=_literal(launch.workdir or workdir),
        output_dir=_literal(job.output_dir),
        variables=_literal(launch.env),
        words="[\n" + "".join(f"    {_literal(word)},\n" for word in job.words) + "]",
        flags=RAY_OWN_FOLDER if job.own_folder else RAY_AS_GIVEN,
        scaling=", ".join(f"{name}={_literal(value)}" for name, value in scaling.items()),
        failures=RAY_FAILURES if job.resumable else 0,
    )


def _literal(value: Any) -> str:
    """Python literal with double quotes."""
    return repr(value) if isinstance(value, bool) else json.dumps(value, ensure_ascii=False)
