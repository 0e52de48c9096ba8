"""`--report_to`: trackers by transformers' own callbacks, with names and places that make sense here."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmtune.arguments.training_groups import TRACKERS
from llmtune.errors import MissingPackageError

__all__ = ["need_trackers", "placed_trackers"]

PROJECT = "llmtune"


def need_trackers(report_to: Sequence[str]) -> None:
    """Raise MissingPackageError where a tracker is not installed; none is imported."""
    for name in report_to:
        package = TRACKERS[name]
        if package and importlib.util.find_spec(package) is None:
            raise MissingPackageError(f"--report_to {name} needs {package}. Install it with: pip install {package}")


@contextlib.contextmanager
def placed_trackers(report_to: Sequence[str], run: Path) -> Iterator[None]:
    """Say in the environment, which the trackers read, what the user has not said there; only within the block.

    What a tracker keeps on this machine goes into the run's folder. Keys and passwords are the tracker's own business:
    they are in its environment or its login, and llmtune never sees them.
    """
    chosen = {
        "wandb": {"WANDB_PROJECT": PROJECT, "WANDB_DIR": str(run)},
        "swanlab": {"SWANLAB_PROJECT": PROJECT, "SWANLAB_LOG_DIR": str(run / "swanlab")},
        "mlflow": {"MLFLOW_EXPERIMENT_NAME": PROJECT, **_mlflow_place(run)},
        "trackio": {"TRACKIO_PROJECT": PROJECT, "TRACKIO_DIR": str(run / "trackio")},
    }
    wanted = {name: value for tracker in report_to for name, value in chosen.get(tracker, {}).items()}
    ours = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in ours})
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _mlflow_place(run: Path) -> dict[str, str]:
    """A folder of plain files, which today's mlflow takes only where it is told to; a place of the user's own stays."""
    if "MLFLOW_TRACKING_URI" in os.environ:
        return {}
    return {"MLFLOW_TRACKING_URI": str(run / "mlruns"), "MLFLOW_ALLOW_FILE_STORE": "true"}
