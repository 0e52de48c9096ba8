"""Callbacks of a resumed run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerState, TrainingArguments

from llmtune.checkpoint import read_state
from llmtune.errors import CheckpointError
from llmtune.samples.streaming import PLACE_FILE, RestoreRandomness, StreamedSamples
from llmtune.utils.files import read_json


def resuming_callbacks(trainer: Any, checkpoint: Path | None) -> Iterator[TrainerCallback]:
    """Yield the callbacks that restore a checkpoint's position; none for a new run."""
    if checkpoint is None:
        return
    if isinstance(trainer.train_dataset, StreamedSamples):
        trainer.train_dataset.go_on_from(read_json(checkpoint / PLACE_FILE))
        yield RestoreRandomness(trainer, checkpoint)
        yield EpochOfStream()
    yield FollowArguments(checkpoint)


class EpochOfStream(TrainerCallback):
    """On resume, the epoch of a stream is what it is in an uninterrupted run: the part of its steps that is done.

    transformers, to which the resumed stream is a new one, counts from 0 again.
    """

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any) -> None:
        state.epoch = state.global_step / state.max_steps


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


# On resume, apply this command's learning rate, schedule and weight decay where they were changed


Rates = list[tuple[float, float]]
"""(peak learning rate, weight decay) of each parameter group."""


def rates_of(optimizer: Any) -> Rates:
    """Return the rates of an optimizer whose scheduler exists."""
    return [(float(group.get("initial_lr", group["lr"])), group["weight_decay"]) for group in optimizer.param_groups]


def follow_rates(optimizer: Any, scheduler: Any, rates: Rates) -> None:
    """Replace the rates restored from a checkpoint, from the next step on.

    Raises:
        CheckpointError: The schedule depends on past losses, so it cannot be changed.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)  # inside accelerate's
    if not isinstance(scheduler, LambdaLR):
        raise CheckpointError(
            f"{type(scheduler).__name__} depends on past losses: resume without changing --learning_rate, "
            "--weight_decay, --lr_scheduler_type and --warmup_ratio."
        )
    scheduler.base_lrs = [peak for peak, _ in rates]
    for group, schedule, (peak, decay) in zip(optimizer.param_groups, scheduler.lr_lambdas, rates, strict=True):
        rate = peak * schedule(scheduler.last_epoch)
        if isinstance(group["lr"], torch.Tensor):  # as torchao's optimizers keep it
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
        group |= {"initial_lr": peak, "weight_decay": decay}
    # upstream: torch 2.13.0 torch/optim/lr_scheduler.py: rates changed in place reach get_last_lr at the next step only
    scheduler._last_lr = [float(group["lr"]) for group in optimizer.param_groups]
