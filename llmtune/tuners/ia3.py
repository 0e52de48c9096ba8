"""IA3: a trainable factor per output of some layers, and per input of the feed-forward ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmtune.errors import UsageError
from llmtune.tuners.lora import linear_names, target_modules
from llmtune.tuners.parts import frozen_parts

if TYPE_CHECKING:
    from peft import IA3Config

    from llmtune.arguments.stage import StageArguments
    from llmtune.models.info import ModelInfo

__all__ = ["ia3_config"]

# Keys, values and the last layer of the feed-forward part, as in the paper (arXiv 2205.05638).
SCALED = ("k_proj", "v_proj", "qkv_proj", "query_key_value", "down_proj", "fc2", "dense_4h_to_h")
FEED_FORWARD = ("down_proj", "up_proj", "gate_proj", "gate_up_proj", "fc1", "fc2", "dense_4h_to_h", "dense_h_to_4h")


def ia3_config(model: Any, args: StageArguments, info: ModelInfo) -> IA3Config:
    """Add IA3 to the layers of `--lora_target_modules`, else to those that the paper scales.

    Raises:
        UsageError: The model has none of them by a name known here.
    """
    from peft import IA3Config

    wanted = args.lora_target_modules
    if wanted in ([], ["DEFAULT"]):
        names = linear_names(model)
        wanted = [name for name in names if name in SCALED]
        if not wanted:
            raise UsageError(
                f"--sft_type ia3: name the layers with --lora_target_modules; the model has {', '.join(names)}."
            )
    targets = target_modules(model, wanted, info, frozen_parts(args))
    feed_forward = [name for name in targets if name.rsplit(".", 1)[-1] in FEED_FORWARD]
    return IA3Config(
        task_type="CAUSAL_LM",
        target_modules=targets,
        feedforward_modules=feed_forward,
        modules_to_save=args.modules_to_save or None,
    )
