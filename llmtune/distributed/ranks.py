"""Rank and number of processes of a run, from the environment variables of torchrun or SLURM's launch line."""

from __future__ import annotations

import os

LAUNCH_VARIABLES = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID")


def rank() -> int:
    """Return the global rank."""
    return _number("RANK", 0)


def world_size() -> int:
    """Return the number of processes, on all machines."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """Return the rank on this machine."""
    return _number("LOCAL_RANK", 0)


def local_world_size() -> int:
    """Return the number of processes on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def launch_id() -> str:
    """Return an id shared by the processes of one launch, also after torchrun restarted them."""
    return ":".join(os.environ.get(name, "") for name in LAUNCH_VARIABLES).strip(":")


def restart_count() -> int:
    """Return how often torchrun has restarted the processes."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


_launcher = os.getppid()


def _remember_launcher() -> None:
    global _launcher
    _launcher = os.getppid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember_launcher)


def launcher_is_gone() -> bool:
    """Return whether the launcher of this process, such as torchrun, has died."""
    return "LOCAL_RANK" in os.environ and os.getppid() != _launcher


def is_distributed() -> bool:
    return world_size() > 1


def is_first() -> bool:
    return rank() == 0


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return max(int(text), 0) if text.lstrip("-").isdigit() else default
