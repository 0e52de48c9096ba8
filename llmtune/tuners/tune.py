"""What is trainable: adapters or everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmtune.tuners.lora import add_lora
from llmtune.tuners.parts import freeze_parts, frozen_parts

if TYPE_CHECKING:
    from llmtune.arguments.sft import SftArguments
    from llmtune.models.info import ModelInfo

__all__ = ["count_parameters", "prepare_tuner"]


def prepare_tuner(model: Any, args: SftArguments, info: ModelInfo) -> Any:
    """Freeze and extend the model as `--sft_type` says. Returns what is to be trained."""
    if args.sft_type == "full":
        model.requires_grad_(True)
        freeze_parts(model, frozen_parts(args))
        return model
    if args.gradient_checkpointing:
        model.enable_input_require_grads()  # else nothing before the first adapter would carry a gradient
    return add_lora(model, args, info)


def count_parameters(model: Any) -> tuple[int, int]:
    """(trainable, all) parameters."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trainable in sizes if trainable), sum(size for size, _ in sizes)
