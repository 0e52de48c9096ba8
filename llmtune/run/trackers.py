"""`--report_to`: trackers by transformers' callbacks, with project names and folders of the run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmtune.arguments.training_groups import TRACKERS
from llmtune.utils.system import need

PROJECT = "llmtune"


def need_trackers(report_to: Sequence[str]) -> None:
    """Raise MissingPackageError if a tracker is not installed; none is imported."""
    for name in report_to:
        if TRACKERS[name]:
            need(TRACKERS[name], f"--report_to {name}")


@contextlib.contextmanager
def placed_trackers(report_to: Sequence[str], run: Path) -> Iterator[None]:
    """Set the trackers' environment variables that the user has not set; only within the block.

    Local files of a tracker go into the run folder. Its credentials are in its own environment or login, and llmtune
    never reads them.
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
    """A local file store, which mlflow must be allowed explicitly; the user's tracking URI takes precedence."""
    if "MLFLOW_TRACKING_URI" in os.environ:
        return {}
    return {"MLFLOW_TRACKING_URI": str(run / "mlruns"), "MLFLOW_ALLOW_FILE_STORE": "true"}
