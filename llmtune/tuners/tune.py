"""Tuners by --sft_type: full fine-tuning, LoRA, AdaLoRA, IA3, VeRA."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TrainerCallback

from llmtune.errors import UsageError
from llmtune.models.heads import output_head, task_type
from llmtune.models.quantization import is_packed, is_quantized
from llmtune.tuners.lora import add_lora, attach, load_adapter
from llmtune.tuners.targets import freeze_by_name, freeze_parts, frozen_parts, linear_names, target_modules

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments
    from llmtune.models.info import ModelInfo


def prepare_tuner(
    model: Any, args: StageArguments, info: ModelInfo, *, num_steps: int, new_token_ids: Sequence[int] = ()
) -> Any:
    """Freeze and extend the model by `--sft_type`. Return the model to train."""
    if args.sft_type == "full":
        model.requires_grad_(True)
        freeze_parts(model, frozen_parts(args))
        freeze_by_name(model, args)
        return model
    if is_quantized(model):
        prepare_quantized(model)
    if args.gradient_checkpointing != "none":
        model.enable_input_require_grads()  # else no gradient would reach the first adapter
    if args.peft_path is not None:
        return _go_on_from(model, Path(args.peft_path), args)
    if args.sft_type == "ia3":
        return add_ia3(model, args, info)
    if args.sft_type == "adalora":
        return add_adalora(model, args, info, num_steps)
    if args.sft_type == "vera":
        return add_vera(model, args, info)
    return add_lora(model, args, info, new_token_ids)


def _go_on_from(model: Any, folder: Path, args: StageArguments) -> Any:
    tuned = load_adapter(model, folder, is_trainable=True)
    kind = str(tuned.peft_config["default"].peft_type.value).lower()
    if kind != args.sft_type:
        raise UsageError(f"--peft_path {folder} is another kind of adapter: use --sft_type {kind}.")
    return tuned


def count_parameters(model: Any) -> tuple[int, int]:
    """Return the number of (trainable, all) parameters."""
    sizes = [(_numel(parameter), parameter.requires_grad) for parameter in model.parameters()]
    packed = sum(_numel_packed(layer) for layer in model.modules() if is_packed(layer))
    return sum(size for size, trainable in sizes if trainable), sum(size for size, _ in sizes) + packed


def _numel_packed(layer: Any) -> int:
    bias = getattr(layer, "bias", None)
    return int(layer.in_features * layer.out_features) + (0 if bias is None else int(bias.numel()))


def _numel(parameter: Any) -> int:
    """Number of elements of the unsharded parameter; with 4 bits, two per byte."""
    if hasattr(parameter, "ds_numel"):  # sharded by ZeRO-3
        return int(parameter.ds_numel)
    if type(parameter).__name__ == "Params4bit":
        return int(parameter.numel() * parameter.element_size() * 2)
    return int(parameter.numel())


def tuner_callbacks(args: StageArguments) -> list[TrainerCallback]:
    return [AllocateRanks()] if args.sft_type == "adalora" else []


# Preparation of a quantised model for training adapters


def prepare_quantized(model: Any) -> Any:
    """Freeze everything and keep norms in fp32, as QLoRA does; embeddings and head stay in their dtype.

    Not with GPTQ and AWQ layers, which compute in the dtype they were loaded for.

    Outside of autocast, layers after a norm compute in fp32; the head, the only unquantised layer there, casts back.
    """
    model.requires_grad_(False)
    if any(is_packed(module) for module in model.modules()):
        return model
    for module in model.modules():
        if isinstance(module, nn.Linear):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 1 and parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()
    head = output_head(model)
    if isinstance(head, nn.Linear):
        head.register_forward_pre_hook(_to_dtype_of_weight)
    return model


def keep_unpacked(model: Any) -> None:
    """Keep bitsandbytes from packing 4-bit weights for fast inference on CPUs with bf16."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # upstream: bitsandbytes 0.50.2 bitsandbytes/nn/modules.py: packs in evaluation, never unpacks; no gradient
            module.support_avx512bf16_for_cpu = False


def _to_dtype_of_weight(head: nn.Linear, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].to(head.weight.dtype), *inputs[1:])


# Adapters beside LoRA: AdaLoRA, IA3, VeRA


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
        task_type=task_type(model),
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


# Keys, values and the last layer of the feed-forward part, as in the paper (arXiv 2205.05638).
SCALED = ("k_proj", "v_proj", "qkv_proj", "query_key_value", "down_proj", "fc2", "dense_4h_to_h")
FEED_FORWARD = ("down_proj", "up_proj", "gate_proj", "gate_up_proj", "fc1", "fc2", "dense_4h_to_h", "dense_h_to_4h")


def add_ia3(model: Any, args: StageArguments, info: ModelInfo) -> Any:
    """Add IA3 to the layers of `--lora_target_modules`, else to those that the paper scales.

    It trains a factor per output, and per input in feed-forward layers.

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
    config = IA3Config(
        task_type=task_type(model),
        target_modules=targets,
        feedforward_modules=feed_forward,
        modules_to_save=args.modules_to_save or None,
    )
    return attach(model, config)


def add_vera(model: Any, args: StageArguments, info: ModelInfo) -> Any:
    """Add VeRA of rank `--lora_rank` to the layers that LoRA would adapt.

    All layers share a pair of frozen random matrices, which is saved too; two small vectors per layer are trained.
    """
    from peft import VeraConfig

    config = VeraConfig(
        task_type=task_type(model),
        r=args.lora_rank,
        vera_dropout=args.lora_dropout_p,
        bias="vera_only" if args.lora_bias == "lora_only" else args.lora_bias,
        target_modules=target_modules(model, args.lora_target_modules, info, frozen_parts(args)),
        modules_to_save=args.modules_to_save or None,
        projection_prng_key=args.seed,
        save_projection=True,
    )
    return attach(model, config)
