"""`llmtune launch`: `llmtune sft` as a job of SLURM, SkyPilot or Ray."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmtune.arguments.launch import LaunchArguments
from llmtune.arguments.parser import parse
from llmtune.arguments.stage import SftArguments
from llmtune.errors import LlmtuneError, MissingPackageError, UsageError
from llmtune.launch.job import Job, make_job
from llmtune.launch.schedulers import ray_text, sky_text, slurm_text
from llmtune.run.resolved import Run
from llmtune.utils.files import write_text
from llmtune.utils.logging import get_logger
from llmtune.utils.processes import replace_process
from llmtune.utils.system import need

SUMMARY = """
Write a cluster job and submit it. Flags of the job come first; after -- the run, checked as by `llmtune sft`:
  llmtune launch --slurm --nodes 2 --gpus 8 --time 24:00:00 --partition gpu --dry_run -- \\
      sft --model_type qwen2.5-7b-instruct --dataset my.jsonl
  llmtune launch --sky --gpus 8 --accelerator A100 --spot --bucket s3://mine --config run.yaml
  llmtune launch --ray --nodes 4 --gpus 8 --env HF_TOKEN -- sft --config run.yaml --learning_rate 2e-5
--dry_run prints the file and submits nothing. Each job writes to its own folder below --output_dir, and resumes from
its last checkpoint when it is preempted, moved or requeued.
"""

EXAMPLE = "llmtune launch --slurm --gpus 8 -- sft --model_type KEY --dataset FILE"
SUFFIX = {"slurm": ".sbatch", "sky": ".sky.yaml", "ray": ".ray.py"}


ARGUMENTS = LaunchArguments


def run(argv: Sequence[str]) -> int:
    own, words = _split(argv)
    launch = parse(LaunchArguments, own, command="launch", summary=SUMMARY)
    if not words:
        raise UsageError(f"Nothing to run. Give {EXAMPLE}, or --config run.yaml with the flags of sft.")
    with _inside(launch.workdir):  # where the run will look for its files
        args = parse(SftArguments, words, command="sft")
        _check_run(args, launch)
        _settle_nodes(launch, args)
    job = make_job(launch, args, words)
    for warning in [*job.warnings, *_left_behind(job, args)]:
        get_logger().warning(warning)
    text = write_job(job)
    if launch.dry_run:
        sys.stdout.write(text)
        if launch.output is not None:
            write_text(Path(launch.output), text)
        return 0
    file = Path(launch.output or f"{job.name}{SUFFIX[launch.scheduler]}")
    command = submit_command(launch, file)
    write_text(file, text)
    get_logger().info(f"Wrote {file}. Submitting: {' '.join(command)}")
    replace_process(command)


def _check_run(args: SftArguments, launch: LaunchArguments) -> None:
    """Refuse what the run would refuse; the checkpoint to resume from, and packages, are the cluster's."""
    begun = copy.copy(args)
    begun.resume_from_checkpoint = None
    if args.nproc == 1:  # one for each GPU of the job; of how many machines, `--nodes auto` does not know yet
        begun.nproc = args.sequence_parallel_size if launch.nodes == "auto" else launch.processes() * int(launch.nodes)
    Run.resolve(begun, offline=True)


def _settle_nodes(launch: LaunchArguments, args: SftArguments) -> None:
    """Resolve `--nodes auto`."""
    if launch.nodes != "auto":
        return
    from llmtune.planning.nodes import least_nodes, note

    nodes, found = least_nodes(args, str(launch.accelerator), launch.gpus)
    launch.nodes = str(nodes)
    get_logger().info(note(nodes, launch.gpus, found))


def write_job(job: Job) -> str:
    """The file for the job's scheduler."""
    if job.launch.slurm:
        return slurm_text(job)
    return sky_text(job) if job.launch.sky else ray_text(job, str(Path.cwd()))


def submit_command(launch: LaunchArguments, file: Path) -> list[str]:
    """Command that submits the file to the scheduler.

    Raises:
        MissingPackageError, LlmtuneError: The scheduler's command is not on this machine.
    """
    if launch.ray:
        need("ray", "--ray", extra="ray")
        return [sys.executable, str(file)]
    if launch.slurm:
        if shutil.which("sbatch") is None:
            raise LlmtuneError(
                "There is no sbatch here: run this on a login node of the cluster, or add --dry_run --output FILE."
            )
        return ["sbatch", str(file)]
    if shutil.which("sky") is None:
        raise MissingPackageError("--sky needs SkyPilot. Install it with: pip install skypilot")
    secrets = [word for name in launch.env for word in ("--secret", name)]
    return ["sky", *(["jobs"] if launch.spot else []), "launch", *secrets, str(file)]


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The job's own flags, and those of sft: after `--`, and in a --config file."""
    words = list(argv)
    if "--" not in words and any(
        word == "sft" and before != "--job_name" for before, word in zip(["", *words], words, strict=False)
    ):
        raise UsageError(f"Put -- before sft: {EXAMPLE}.")
    place = words.index("--") if "--" in words else len(words)
    own, behind = words[:place], words[place + 1 :]
    if behind[:1] == ["llmtune"]:
        behind = behind[1:]
    if behind and behind[0] != "sft":
        raise UsageError(f"After -- comes sft with its flags, not {behind[0]!r}: {EXAMPLE}.")
    config: list[str] = []
    for index, word in enumerate(own):
        if word.partition("=")[0] == "--config":
            end = index + (1 if "=" in word else 2)
            config, own = own[index:end], own[:index] + own[end:]
            break
    return own, [*config, *behind[1:]]


@contextlib.contextmanager
def _inside(folder: str | None) -> Iterator[None]:
    former = Path.cwd()
    os.chdir(former if folder is None else Path(folder).expanduser())
    try:
        yield
    finally:
        os.chdir(former)


def _left_behind(job: Job, args: SftArguments) -> list[str]:
    """Warnings about files that SkyPilot does not upload."""
    if not job.launch.sky:
        return []
    root = Path(job.launch.workdir or ".").expanduser().resolve()
    named = [*args.dataset, *args.val_dataset, args.model_id_or_path, args.tokenizer_id_or_path, args.peft_path]
    files = [(root / Path(text.partition("#")[0]).expanduser()).resolve() for text in named if text]
    return [
        f"{file} is outside of {root}, so SkyPilot does not upload it."
        for file in files
        if file.exists() and root not in (file, *file.parents)
    ]
