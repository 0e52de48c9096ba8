"""Which process of a run this is, as torchrun, SLURM's launch line or nothing at all says in the environment."""

from __future__ import annotations

import os

__all__ = [
    "is_distributed",
    "is_first",
    "launch_id",
    "launcher_is_gone",
    "local_rank",
    "local_world_size",
    "rank",
    "restart_count",
    "world_size",
]

LAUNCH_VARIABLES = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID")


def rank() -> int:
    """Number of this process among all, from 0."""
    return _number("RANK", 0)


def world_size() -> int:
    """Processes of the run, on all machines."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """Number of this process among those of its machine, from 0."""
    return _number("LOCAL_RANK", 0)


def local_world_size() -> int:
    """Processes of the run on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def launch_id() -> str:
    """What the processes that one launch started have in common, also after torchrun started them again."""
    return ":".join(os.environ.get(name, "") for name in LAUNCH_VARIABLES).strip(":")


def restart_count() -> int:
    """How often torchrun has started the processes again."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


_launcher = os.getppid()


def _remember_launcher() -> None:
    global _launcher
    _launcher = os.getppid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember_launcher)


def launcher_is_gone() -> bool:
    """Whether torchrun, or whatever started this process among others, has died and left it behind."""
    return "LOCAL_RANK" in os.environ and os.getppid() != _launcher


def is_distributed() -> bool:
    return world_size() > 1


def is_first() -> bool:
    return rank() == 0


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return max(int(text), 0) if text.lstrip("-").isdigit() else default
