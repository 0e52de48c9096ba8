"""LoRA+: the second matrices of the adapters learn faster than the first (arXiv 2402.12354)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

__all__ = ["loraplus_optimizer"]


def loraplus_optimizer(model: Any, arguments: TrainingArguments, ratio: float) -> torch.optim.Optimizer:
    """The optimizer that `arguments` name, with `ratio` times the learning rate for the matrices B."""
    from peft.optimizers import create_loraplus_optimizer
    from transformers import Trainer

    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    options["loraplus_weight_decay"] = arguments.weight_decay
    return create_loraplus_optimizer(model, optimizer_class, loraplus_lr_ratio=ratio, **options)
