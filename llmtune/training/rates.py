"""On resume, apply this command's learning rate, schedule and weight decay where they were changed.

Optimizer and scheduler save a copy of theirs in the checkpoint, which upstream restores over the arguments.
"""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from llmtune.errors import CheckpointError

__all__ = ["follow_rates", "rates_of"]

Rates = list[tuple[float, float]]
"""(peak learning rate, weight decay) of each parameter group."""


def rates_of(optimizer: Any) -> Rates:
    """Return the rates of an optimizer whose scheduler exists."""
    return [(group.get("initial_lr", group["lr"]), group["weight_decay"]) for group in optimizer.param_groups]


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
        group |= {"initial_lr": peak, "weight_decay": decay, "lr": peak * schedule(scheduler.last_epoch)}
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
