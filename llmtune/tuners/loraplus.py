"""LoRA+: a higher learning rate for the adapters' B matrices (arXiv 2402.12354)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

__all__ = ["loraplus_optimizer"]


def loraplus_optimizer(model: Any, arguments: TrainingArguments, ratio: float) -> torch.optim.Optimizer:
    """Return the optimizer of `arguments`, with `ratio` times the learning rate for the B matrices."""
    from peft.optimizers import create_loraplus_optimizer
    from transformers import Trainer

    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    options["loraplus_weight_decay"] = arguments.weight_decay
    return create_loraplus_optimizer(model, optimizer_class, loraplus_lr_ratio=ratio, **options)
