"""Jobs as they run: what the script for sbatch and the Ray job compute is what one process computes, also when they are
stopped on the way."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmtune import SftArguments, sft
from llmtune.cli.main import main

from ..launched import RUN, newest, records, words
from ..waiting import SECONDS, until

pytestmark = pytest.mark.slow

SETTINGS = RUN | {"gradient_accumulation_steps": 2}  # in each of two processes; alone, 4
FAKES = {
    "llmtune": f'exec {sys.executable} -m llmtune "$@"',
    # srun's own flags begin with dashes; then comes what it starts on each node
    "srun": """
while [[ $1 == --* ]]; do shift; done
steps=()
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
    SLURM_NODEID=$node "$@" &
    steps+=($!)
done
echo "${steps[@]}" > steps
for step in "${steps[@]}"; do wait -n || { status=$?; kill "${steps[@]}"; exit "$status"; }; done
""",
    "scancel": '[ "$*" == "--signal=TERM $SLURM_JOB_ID" ] && kill -TERM $(cat steps)',
    "scontrol": 'if [ "$1" == show ]; then echo 127.0.0.1; echo 127.0.0.2; else echo "$*" > requeued; fi',
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    return sft(SftArguments(**(RUN | {"gradient_accumulation_steps": 4, "output_dir": str(folder)}))).output_dir


@contextlib.contextmanager
def started(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that writes to the file `out`; nothing of it outlives the block."""
    with open("out", "w", encoding="utf-8") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, text=True, **options)
        try:
            yield process
        finally:
            below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            for one in [*below, process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()


def said() -> str:
    return Path("out").read_text(encoding="utf-8")[-8000:]


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    def is_there() -> bool:
        assert process.poll() is None, said()
        return f"step {step}/" in said()

    until(is_there, said)


def test_sbatch_script_on_two_nodes_queues_again(tmp_path, monkeypatch, alone):
    """Of SLURM, only the commands are stood in for: bash, torchrun and the training are real."""
    monkeypatch.chdir(tmp_path)
    for name, text in FAKES.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/bash\n{text}\n")
        file.chmod(0o755)
    argv = ["launch", "--slurm", "--nodes", "2", "--gpus", "0", "--dry-run", "--output", "job.sbatch", "--", "sft"]
    assert main([*argv, *words(SETTINGS)]) == 0
    number = str(os.getpid())
    variables = {"SLURM_JOB_ID": number, "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "127.0.0.[1-2]"}
    environment = os.environ | variables | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    with started(["bash", "job.sbatch"], env=environment) as job:
        wait_for_step(job, 5)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(SECONDS) == 0, said()
    assert "SIGTERM: saving a checkpoint after this step, then stopping" in said()
    assert Path("requeued").read_text() == f"requeue {number}\n"
    run = newest(tmp_path / f"output/slurm-{number}")
    assert 5 <= max(records(run)) < 12
    Path("requeued").unlink()
    with started(["bash", "job.sbatch"], env=environment) as job:
        assert job.wait(SECONDS) == 0, said()
    assert not Path("requeued").exists()
    assert "DDP over 2 processes (gloo)" in (run / "report.md").read_text()
    assert list(run.parent.iterdir()) == [run]
    assert records(run) == pytest.approx(records(alone), rel=1e-5)


CLUSTER = """
import os, subprocess, sys, ray
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_worker_niceness"] = "0"  # Ray's 15 starves them beside the other tests
context = ray.init(num_cpus=2, include_dashboard=False)
os.environ["RAY_ADDRESS"] = context.address_info["gcs_address"]
sys.exit(subprocess.run([sys.executable, "-m", "llmtune", *sys.argv[1:]]).returncode)
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'llmtune[ray]'")
def test_ray_job_on_two_workers_goes_on_after_one_is_killed(tmp_path, monkeypatch, alone):
    """A real cluster of this machine, to which llmtune launch --ray submits."""
    monkeypatch.chdir(tmp_path)
    argv = ["launch", "--ray", "--nodes", "2", "--gpus", "0", "--", "sft", *words(SETTINGS)]
    with started([sys.executable, "-c", CLUSTER, *argv]) as job:
        wait_for_step(job, 6)
        ray_worker(job.pid).kill()
        assert job.wait(SECONDS) == 0, said()
    (folder,) = (tmp_path / "output").glob("ray-*")
    run = newest(folder)
    assert "DDP over 2 processes (gloo)" in (run / "report.md").read_text()
    assert "llmtune sft --model_type llmtune-tiny" in (run / "report.md").read_text()
    steps = [json.loads(line).get("global_step") for line in (run / "logging.jsonl").read_text().splitlines()]
    assert steps.count(1) == 1  # it did not begin anew
    assert steps.count(5) > 1
    assert records(run) == pytest.approx(records(alone), rel=1e-5)


def ray_worker(pid: int) -> psutil.Process:
    below = psutil.Process(pid).children(recursive=True)
    return next(one for one in below if "RayTrainWorker" in " ".join(one.cmdline()))
