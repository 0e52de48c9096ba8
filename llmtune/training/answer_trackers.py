"""The responses of answers.jsonl in the trackers of a run."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from llmtune.utils.logging import get_logger

NAME = "answers"
COLUMNS = ("round", "prompt", "response", "reward")
CELL = 500
"""Most characters of a cell."""


class TrackAnswers(TrainerCallback):
    """Sends the newest responses to the trackers whenever losses are logged.

    Args:
        newest: Returns the records of the last round.
        callbacks: Returns the trainer's callbacks, those of the trackers among them.
    """

    def __init__(self, newest: Callable[[], Sequence[dict[str, Any]]], callbacks: Callable[[], Sequence[Any]]) -> None:
        self._newest = newest
        self._callbacks = callbacks

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        records = self._newest()
        if not state.is_world_process_zero or "reward" not in (logs or {}) or not records:
            return
        for callback in self._callbacks():
            send = SENDERS.get(type(callback).__name__)
            if send is not None:
                try:
                    send(callback, records, state.global_step)
                except Exception as err:  # a tracker's trouble is no reason to stop a training
                    get_logger().warning("The responses could not be sent to a tracker: %s", err)


def as_markdown(records: Sequence[dict[str, Any]]) -> str:
    """Return the records as a table."""
    rows = [f"| {' | '.join(_cell(record[name]) for name in COLUMNS)} |" for record in records]
    return "\n".join([f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *rows])


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)[:CELL]
    return text.replace("|", "\\|").replace("\n", "<br>")


def _rows(records: Sequence[dict[str, Any]]) -> list[list[Any]]:
    return [[record[name] for name in COLUMNS] for record in records]


def _tensorboard(callback: Any, records: Sequence[dict[str, Any]], step: int) -> None:
    if callback.tb_writer is not None:
        callback.tb_writer.add_text(NAME, as_markdown(records), step)


def _wandb(callback: Any, records: Sequence[dict[str, Any]], step: int) -> None:
    table = callback._wandb.Table(columns=list(COLUMNS), data=_rows(records))
    callback._wandb.log({NAME: table, "train/global_step": step})


def _swanlab(callback: Any, records: Sequence[dict[str, Any]], step: int) -> None:
    texts = [f"{record['reward']:.4g}: {record['response'][:CELL]}" for record in records]
    callback._swanlab.log({NAME: [callback._swanlab.Text(text) for text in texts]}, step=step)


def _mlflow(callback: Any, records: Sequence[dict[str, Any]], step: int) -> None:
    with contextlib.suppress(AttributeError):
        # Transformers sends metrics in the background, and a text is filed after reading the run: a metric's file
        # that is being written would be an error.
        callback._ml_flow.flush_async_logging()
        callback._ml_flow.log_text(as_markdown(records), f"{NAME}/step-{step}.md")


def _trackio(callback: Any, records: Sequence[dict[str, Any]], step: int) -> None:
    pandas: Any = importlib.import_module("pandas")
    frame = pandas.DataFrame(_rows(records), columns=list(COLUMNS))
    callback._trackio.log({NAME: callback._trackio.Table(dataframe=frame)}, step=step)


SENDERS: dict[str, Callable[[Any, Sequence[dict[str, Any]], int], None]] = {
    "TensorBoardCallback": _tensorboard,
    "WandbCallback": _wandb,
    "SwanLabCallback": _swanlab,
    "MLflowCallback": _mlflow,
    "TrackioCallback": _trackio,
}
"""By the name of transformers' callback."""
