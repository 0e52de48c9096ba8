"""A script for SLURM's sbatch.

srun starts one torchrun a node, with the variables that `llmtune sft --nproc` reads. Before the time is over, SLURM
tells the script alone (B:), which tells the processes: they save and exit 0, and the job goes back into the queue.

Source: https://slurm.schedmd.com/sbatch.html (--signal, --requeue, --open-mode), https://slurm.schedmd.com/scancel.html
(--signal without --batch or --full reaches the steps alone), https://github.com/NVIDIA/pyxis (--container-image).
"""

from __future__ import annotations

import shlex

from llmtune.launch.job import Job, bash_array

HEAD = """\
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

RUN = """\
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
        HEAD.format(name=job.name, size=job.size()) + "".join(f"#SBATCH {line}\n" for line in _settings(job)),
        "set -e\n",
        "".join(f': "${{{name}:?is not set: export it before sbatch}}"\n' for name in launch.env),
        f"{launch.setup}\n" if launch.setup else "",
        "set -u\n" + RENDEZVOUS,  # only now: what sets up environments often reads unset variables
        bash_array("sft", ["llmtune", "sft", *job.words], raw) + "\n",
        STOP.format(grace=launch.grace, then=THEN if job.resumable else ""),
        RUN.format(srun=_srun(job), requeue=REQUEUE if job.resumable else ""),
    ]
    return "\n".join(part for part in parts if part)


def _settings(job: Job) -> list[str]:
    launch = job.launch
    kind = f"{launch.accelerator}:" if launch.accelerator else ""
    lines: list[tuple[str, object]] = [
        ("job-name", job.name),
        ("nodes", launch.nodes),
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
