"""AdaLoRA: adapters begin with more ranks than they keep; those that matter least are given up (arXiv 2303.10512)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from llmtune.tuners.lora import attach, target_modules
from llmtune.tuners.parts import frozen_parts

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments
    from llmtune.models.info import ModelInfo

__all__ = ["AllocateRanks", "add_adalora"]

ORTHOGONALITY = 0.5
"""Weight of the loss that keeps the factors orthogonal: PEFT's."""


def add_adalora(model: Any, args: StageArguments, info: ModelInfo, num_steps: int) -> Any:
    """Adapters of `--lora_rank` ranks on average at the end, of half as many more at the beginning.

    The first tenth of the steps keeps all ranks; the last three tenths train those that are left.
    """
    from peft import AdaLoraConfig

    # A layer may give up all its ranks; peft 0.21 takes that for a mistake of DeepSpeed's.
    warnings.filterwarnings("ignore", message=".*zero-sized lora_A")
    config = AdaLoraConfig(
        task_type="CAUSAL_LM",
        target_r=args.lora_rank,
        init_r=args.lora_rank + -(-args.lora_rank // 2),
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout_p,
        bias=args.lora_bias,
        target_modules=target_modules(model, args.lora_target_modules, info, frozen_parts(args)),
        modules_to_save=args.modules_to_save or None,
        tinit=num_steps // 10,
        tfinal=num_steps * 3 // 10,
        total_step=num_steps,
        # PEFT adds it at every forward pass, and our losses of a step are summed over them.
        orth_reg_weight=ORTHOGONALITY / args.gradient_accumulation_steps,
    )
    return _regularised_in_training_alone(attach(model, config))


class AllocateRanks(TrainerCallback):
    """Gives up ranks while the gradients of a step are at hand."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        model.base_model.update_and_allocate(state.global_step)


def _regularised_in_training_alone(tuned: Any) -> Any:
    base = tuned.base_model
    regularised = base.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (regularised if base.training else base.model.forward)(*args, **kwargs)

    base.forward = forward
    return tuned
