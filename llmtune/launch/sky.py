"""A task for SkyPilot.

Source: https://docs.skypilot.co/en/latest/reference/yaml-spec.html (fields),
https://docs.skypilot.co/en/latest/running-jobs/environment-variables.html (SKYPILOT_*; the task's id stays the same
when a managed job recovers).
"""

from __future__ import annotations

import shlex
from typing import Any

from llmtune.launch.job import Job, bash_array

HEAD = """\
# {name}: llmtune sft on {size}. Written by llmtune launch --sky.
# SkyPilot uploads workdir, less what .gitignore or .skyignore names; `sky logs` shows the run.
"""

RUN = """\
set -eu
export NNODES=$SKYPILOT_NUM_NODES NODE_RANK=$SKYPILOT_NODE_RANK
export MASTER_ADDR=${{SKYPILOT_NODE_IPS%%$'\\n'*}} MASTER_PORT=29500
{command}
exec "${{sft[@]}}"
"""

OUTPUT = "/llmtune-output"


def sky_text(job: Job) -> str:
    """Return the task file (YAML)."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Write multi-line texts as blocks."""

    def as_block(dumper: Any, text: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Dumper.add_representer(str, as_block)
    body = yaml.dump(_task(job), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return HEAD.format(name=job.name, size=job.size()) + body


def _task(job: Job) -> dict[str, Any]:
    launch = job.launch
    setup = launch.setup or (None if launch.container else "pip install llmtune")
    task = {
        "name": job.name,
        "num_nodes": launch.nodes,
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
        "file_mounts": {OUTPUT: {"source": launch.bucket, "mode": "MOUNT_CACHED"}} if launch.bucket else None,
        "setup": f"{setup.strip()}\n" if setup else None,
        "run": RUN.format(command=bash_array("sft", ["llmtune", "sft", *job.words], _own_flags(job))),
    }
    return {name: value for name, value in task.items() if value}


def _own_flags(job: Job) -> list[str]:
    processes = '"$SKYPILOT_NUM_GPUS_PER_NODE"' if job.launch.gpus else "1"
    flags = [f"--nproc {processes}"]
    folder = OUTPUT if job.launch.bucket else shlex.quote(job.output_dir)
    if job.own_folder:
        flags += [f'--output_dir {folder}/"$SKYPILOT_TASK_ID"', "--resume_from_checkpoint last"]
    elif job.launch.bucket:
        flags.append(f"--output_dir {folder}")
    return flags


def _present(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
