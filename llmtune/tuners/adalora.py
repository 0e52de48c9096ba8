"""AdaLoRA: adapters start with more ranks than they keep; the least important ones are pruned (arXiv 2303.10512)."""

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
"""Weight of the orthogonality loss, PEFT's default."""


def add_adalora(model: Any, args: StageArguments, info: ModelInfo, num_steps: int) -> Any:
    """Add adapters with an average rank of `--lora_rank` at the end, and 1.5 times that at the start.

    The first tenth of the steps keeps all ranks; the last three tenths train the remaining ones.
    """
    from peft import AdaLoraConfig

    # A layer may lose all its ranks; peft 0.21 mistakes that for a DeepSpeed error.
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
        # PEFT adds it in every forward pass, and the losses of a step are summed over them.
        orth_reg_weight=ORTHOGONALITY / args.gradient_accumulation_steps,
    )
    return _regularised_in_training_alone(attach(model, config))


class AllocateRanks(TrainerCallback):
    """Prunes ranks while the gradients of a step exist."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        model.base_model.update_and_allocate(state.global_step)


def _regularised_in_training_alone(tuned: Any) -> Any:
    base = tuned.base_model
    regularised = base.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (regularised if base.training else base.model.forward)(*args, **kwargs)

    base.forward = forward
    return tuned
