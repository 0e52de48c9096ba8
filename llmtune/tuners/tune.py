"""Tuners: adapters or full fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llmtune.errors import UsageError
from llmtune.models.quantization import is_packed, is_quantized
from llmtune.tuners.lora import add_lora, attach, load_adapter
from llmtune.tuners.other_adapters import add_adalora, ia3_config, vera_config
from llmtune.tuners.parts import freeze_by_name, freeze_parts, frozen_parts

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainingArguments

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
        return attach(model, ia3_config(model, args, info))
    if args.sft_type == "adalora":
        return add_adalora(model, args, info, num_steps)
    if args.sft_type == "vera":
        return attach(model, vera_config(model, args, info))
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
    """Callbacks of a tuner."""
    if args.sft_type != "adalora":
        return []
    from llmtune.tuners.other_adapters import AllocateRanks

    return [AllocateRanks()]


def tuner_optimizer(model: Any, arguments: TrainingArguments, args: StageArguments) -> torch.optim.Optimizer | None:
    """The optimizer of a tuner that has its own; None: that of the arguments."""
    if args.lorap_lr_ratio is None or args.sft_type != "lora":
        return None
    from llmtune.tuners.lora import loraplus_optimizer

    return loraplus_optimizer(model, arguments, args.lorap_lr_ratio)


# Preparation of a quantised model for training adapters


def prepare_quantized(model: Any) -> Any:
    """Freeze everything and keep norms in fp32, as QLoRA does; embeddings and head stay in their dtype.

    Not with GPTQ and AWQ layers, which compute in the dtype they were loaded for.

    Outside of autocast, layers after a norm compute in fp32; the head, the only unquantised layer there, casts back.
    """
    model.requires_grad_(False)
    keep_unpacked(model)
    if any(is_packed(module) for module in model.modules()):
        return model
    for module in model.modules():
        if isinstance(module, nn.Linear):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 1 and parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()
    head = model.get_output_embeddings()
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
