"""VeRA: one pair of frozen random matrices shared by all layers, and two small trainable vectors per layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmtune.tuners.lora import target_modules
from llmtune.tuners.parts import frozen_parts

if TYPE_CHECKING:
    from peft import VeraConfig

    from llmtune.arguments.stage import StageArguments
    from llmtune.models.info import ModelInfo

__all__ = ["vera_config"]


def vera_config(model: Any, args: StageArguments, info: ModelInfo) -> VeraConfig:
    """Add VeRA of rank `--lora_rank` to the layers that LoRA would adapt. The shared matrices are saved too."""
    from peft import VeraConfig

    return VeraConfig(
        task_type="CAUSAL_LM",
        r=args.lora_rank,
        vera_dropout=args.lora_dropout_p,
        bias="vera_only" if args.lora_bias == "lora_only" else args.lora_bias,
        target_modules=target_modules(model, args.lora_target_modules, info, frozen_parts(args)),
        modules_to_save=args.modules_to_save or None,
        projection_prng_key=args.seed,
        save_projection=True,
    )
