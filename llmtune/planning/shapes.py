"""Models on the meta device: built from the configuration, with adapters."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llmtune.checkpoint import adapter_folder
from llmtune.models.info import ModelInfo
from llmtune.models.meta import from_config, with_layers
from llmtune.models.ports import native_config
from llmtune.tuners.lora import attach
from llmtune.tuners.tune import prepare_tuner
from llmtune.tuners.vocabulary import grow_vocabulary

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments


class _Dequantized(torch.autograd.Function):
    """A matmul whose weight is dequantised in forward and again in backward, and not kept."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = inputs.dtype
        return nn.functional.linear(inputs.to(dtype), torch.empty_like(weight, dtype=dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        whole = torch.empty_like(weight, dtype=grads[0].dtype)
        return (grads[0] @ whole).to(ctx.dtype), None, None


class ShapeOfQuantized(nn.Linear):
    """A linear layer with a packed quantised weight: models its memory, not its result."""

    packed_bits: float
    compute_dtype: torch.dtype

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = _Dequantized.apply(inputs, self.weight, self.compute_dtype)
        return found if self.bias is None else found + self.bias.to(found.dtype)


def shapes(
    args: StageArguments, info: ModelInfo, folder: Path, dtype: torch.dtype, num_layers: int | None = None
) -> Any:
    """Build the model that `sft` would train, on the meta device.

    Args:
        folder: With its config.json; no weights are read.
        dtype: Of the stored weights.
        num_layers: Build fewer layers.

    Raises:
        ModelError: transformers cannot build a model from this configuration.
    """
    config = native_config(folder, trust_remote_code=args.trust_remote_code)
    bits = _bits(args, config)
    if num_layers is not None:
        config = with_layers(config, num_layers)
    config = copy.deepcopy(config)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    # This machine may lack the planned one's attention: FlashAttention keeps what sdpa keeps.
    # upstream: transformers 5.23.0 transformers/configuration_utils.py: its attention has no public setter
    config._attn_implementation = "eager" if getattr(args, "attn_impl", None) == "eager" else None
    with torch.device("meta"):
        model = from_config(config, folder, dtype, args.trust_remote_code)
        model.config.name_or_path = model.name_or_path = str(folder)
        if bits:
            _quantize(model, info, bits, dtype)
        if args.new_special_tokens:
            grow_vocabulary(model, model.get_input_embeddings().weight.shape[0] + len(args.new_special_tokens))
        plain = copy.copy(args)
        plain.lora_init = "default"  # the others have the same shapes, but compute them from weights
        if args.peft_path is not None:
            return _like_checkpoint(model, Path(args.peft_path)).train()
        rows = model.get_input_embeddings().weight.shape[0]
        new = range(rows - len(args.new_special_tokens), rows) if args.new_special_tokens else ()
        return prepare_tuner(model, plain, info, num_steps=100, new_token_ids=list(new)).train()


def _like_checkpoint(model: Any, folder: Path) -> Any:
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(adapter_folder(folder)))
    config.inference_mode = False
    return attach(model, config)


# Quantised weights


def _bits(args: StageArguments, config: Any) -> float:
    """Bits per quantised weight, quantisation constants included; 0 if not quantised."""
    if args.quantization_bit == 8:
        return 8.0
    if args.quantization_bit == 4:  # a scale for 64 numbers: fp32, or 8 bits and an fp32 for 256 scales
        return 4 + (8 / 64 + 32 / (64 * 256) if args.bnb_4bit_use_double_quant else 32 / 64)
    found = getattr(config, "quantization_config", None)
    if not found:
        return 0
    found = found if isinstance(found, dict) else found.to_dict()
    bits = found.get("bits") or (4 if found.get("load_in_4bit") else 8)
    group = found.get("group_size") or 128
    return float(bits) + (16 + bits) / group if group > 0 else float(bits)


def _quantize(model: Any, info: ModelInfo, bits: float, dtype: torch.dtype) -> None:
    from llmtune.tuners.tune import prepare_quantized

    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        skipped = any(f".{part}." in f".{name}." for part in info.skip_quantization)
        if type(module) is nn.Linear and module is not head and not skipped:
            # upstream: bitsandbytes 0.50.2 no issue: its layers are quantised by moving real weights to a device
            module.__class__ = ShapeOfQuantized
            module.packed_bits, module.compute_dtype = bits, dtype  # type: ignore[assignment]
    prepare_quantized(model)


def weight_bytes(model: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """Yield each parameter with its size in bytes."""
    packed = {
        id(module.weight): module.packed_bits for module in model.modules() if isinstance(module, ShapeOfQuantized)
    }
    for parameter in model.parameters():
        bits = packed.get(id(parameter), parameter.element_size() * 8)
        yield parameter, math.ceil(parameter.numel() * bits / 8)
