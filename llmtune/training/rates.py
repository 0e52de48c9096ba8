"""On resume: learning rate, schedule and weight decay as this command has them, where they were changed.

Optimizer and scheduler keep a copy of theirs in the checkpoint, which upstream restores over the arguments.
"""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from llmtune.errors import CheckpointError

__all__ = ["follow_rates", "rates_of"]

Rates = list[tuple[float, float]]
"""(peak learning rate, weight decay) of each group of parameters."""


def rates_of(optimizer: Any) -> Rates:
    """Those of an optimizer whose scheduler has been made."""
    return [(group.get("initial_lr", group["lr"]), group["weight_decay"]) for group in optimizer.param_groups]


def follow_rates(optimizer: Any, scheduler: Any, rates: Rates) -> None:
    """Put the rates in the place of those that a checkpoint brought, from the next step on.

    Raises:
        CheckpointError: The schedule depends on what has been, and cannot be changed on the way.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)  # inside accelerate's
    if not isinstance(scheduler, LambdaLR):
        raise CheckpointError(
            f"{type(scheduler).__name__} depends on the losses so far: resume without changing --learning_rate, "
            "--weight_decay, --lr_scheduler_type and --warmup_ratio."
        )
    scheduler.base_lrs = [peak for peak, _ in rates]
    for group, schedule, (peak, decay) in zip(optimizer.param_groups, scheduler.lr_lambdas, rates, strict=True):
        group |= {"initial_lr": peak, "weight_decay": decay, "lr": peak * schedule(scheduler.last_epoch)}
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
