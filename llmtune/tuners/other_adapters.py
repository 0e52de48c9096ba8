"""Adapters beside LoRA: AdaLoRA, IA3, VeRA."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from llmtune.errors import UsageError
from llmtune.tuners.lora import attach, linear_names, target_modules
from llmtune.tuners.parts import frozen_parts

if TYPE_CHECKING:
    from peft import IA3Config, VeraConfig

    from llmtune.arguments.stage import StageArguments
    from llmtune.models.info import ModelInfo


ORTHOGONALITY = 0.5
"""Weight of the orthogonality loss, PEFT's default."""


def add_adalora(model: Any, args: StageArguments, info: ModelInfo, num_steps: int) -> Any:
    """Add adapters with an average rank of `--lora_rank` at the end, and 1.5 times that at the start.

    The first tenth of the steps keeps all ranks; the last three tenths train the remaining ones.
    """
    from peft import AdaLoraConfig

    # upstream: peft 0.21.2 peft/utils/save_and_load.py: mistakes a layer without ranks for a DeepSpeed error
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

    # upstream: peft 0.21.2 peft/tuners/adalora/model.py: adds the orthogonality loss in evaluation too
    base.forward = forward
    return tuned


# IA3: a trainable factor per output of some layers, and per input of the feed-forward ones


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


# VeRA: one pair of frozen random matrices shared by all layers, and two small trainable vectors per layer


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
