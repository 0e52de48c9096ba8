"""Callbacks of a resumed run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from llmtune.checkpoint import read_state
from llmtune.samples.streaming import PLACE_FILE, RestoreRandomness, StreamedSamples
from llmtune.utils.files import read_json

__all__ = ["resuming_callbacks"]


def resuming_callbacks(trainer: Any, checkpoint: Path | None) -> Iterator[TrainerCallback]:
    """Yield the callbacks that restore a checkpoint's position; none for a new run."""
    if checkpoint is None:
        return
    if isinstance(trainer.train_dataset, StreamedSamples):
        trainer.train_dataset.go_on_from(read_json(checkpoint / PLACE_FILE))
        yield RestoreRandomness(trainer, checkpoint)
    yield FollowArguments(checkpoint)


class FollowArguments(TrainerCallback):
    """On resume, uses this command's intervals of logs, evaluations and checkpoints.

    transformers reads them from the checkpoint's state. The best checkpoint is searched where the run folder is now.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any) -> None:
        state.compute_steps(args, state.max_steps)
        named = read_state(self.checkpoint).get("best_model_checkpoint")
        best = self.checkpoint.parent / Path(str(named or "")).name
        state.best_model_checkpoint = str(best) if named and best.is_dir() else None
