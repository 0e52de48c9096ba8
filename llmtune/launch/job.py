"""A job for any scheduler: the flags of `llmtune sft`, and whether it can resume after preemption."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmtune.arguments.checks import parse_train_args
from llmtune.arguments.launch import LaunchArguments
from llmtune.arguments.stage import StageArguments
from llmtune.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run of `llmtune sft` and the machines for it.

    Attributes:
        name: What the scheduler calls it.
        words: The flags of sft, as they were given; without --output_dir where `own_folder`.
        output_dir: Where sft writes; where `own_folder`, the job's folder stands below it.
        resumable: A second start resumes from the last checkpoint.
        own_folder: The file gives each job a folder, so that `last` is never another job's run. Where the user said
            what to resume from, folder and flags stay theirs.
        launch: The machines.
        warnings: What the user should know before it runs.
    """

    name: str
    words: tuple[str, ...]
    output_dir: str
    resumable: bool
    own_folder: bool
    launch: LaunchArguments
    warnings: list[str] = field(default_factory=list)

    def size(self) -> str:
        """Describe the machines."""
        nodes, gpus = self.launch.num_nodes, self.launch.gpus
        each = f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else "one process on the CPU"
        return f"{nodes} machine{'s' * (nodes > 1)} with {each}{' each' * (nodes > 1)}"


def make_job(launch: LaunchArguments, args: StageArguments, words: Sequence[str]) -> Job:
    """Combine the flags of job and run.

    Args:
        launch: Checked flags of the job.
        args: The flags of sft, checked.
        words: The same as they were given.

    Raises:
        UsageError: They hold a secret, which a file must not, or say what the launcher says.
    """
    _refuse_secrets(args)
    if args.nproc != 1:
        raise UsageError(
            f"--nproc {args.nproc}: a job has one process per GPU. Remove it; --gpus sets the number per machine."
        )
    warnings = [f"{flag} has no effect with --{launch.scheduler}." for flag in launch.unused_flags()]
    resumable = args.save_strategy != "no" and not args.only_save_model
    if not resumable:
        warnings.append(
            "The checkpoints of this run have weights only, so a preempted job starts over: use "
            "--only_save_model false to make it resume."
        )
    given = args.resume_from_checkpoint
    if given is not None and Path(given).name.startswith("checkpoint-"):
        warnings.append(
            f"--resume_from_checkpoint {given}: a preempted job restarts from there. Give the run folder, "
            f"{Path(given).parent}, and it resumes from the last checkpoint."
        )
    own_folder = resumable and given is None
    return Job(
        name=launch.job_name or _as_name(args.display_name()),
        words=tuple(_without(words, "output_dir") if own_folder else words),
        output_dir=args.output_dir,
        resumable=resumable,
        own_folder=own_folder,
        launch=launch,
        warnings=warnings,
    )


def bash_array(name: str, words: Sequence[str], raw: Sequence[str] = ()) -> str:
    """A bash array of a command, one flag per line. `raw`: lines at the end that bash expands."""
    lines = [" ".join(map(shlex.quote, group)) for group in _by_flag(words)]
    return "\n".join([f"{name}=(", *(f"    {line}" for line in [*lines, *raw]), ")"])


def _by_flag(words: Sequence[str]) -> Iterator[list[str]]:
    group: list[str] = []
    for word in words:
        if word.startswith("--") and group:
            yield group
            group = []
        group.append(word)
    yield group


def _without(words: Sequence[str], flag: str) -> list[str]:
    """Return the words without a flag and its values."""
    groups = list(_by_flag(words)) if words else []
    names = [group[0].partition("=")[0].removeprefix("--").replace("-", "_") for group in groups]
    return [word for name, group in zip(names, groups, strict=True) if name != flag for word in group]


def _as_name(text: str) -> str:
    name = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in text)
    return name if name[:1].isalpha() else f"sft-{name}"


def _refuse_secrets(args: StageArguments) -> None:
    named = "--hub_token" if args.hub_token is not None else ""
    for key in parse_train_args(args.train_args):
        named = f"--train_args {key}=" if "token" in key else named
    if named:
        raise UsageError(
            f"{named} would be written to a file that others can read. Remove it: export MODELSCOPE_API_TOKEN or "
            "HF_TOKEN in your shell, and pass it on with --env."
        )
