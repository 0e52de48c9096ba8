"""Preparation of a quantised model for training adapters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from llmtune.models.quantization import is_packed

__all__ = ["keep_unpacked", "prepare_quantized"]


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
    """Keep bitsandbytes from packing 4-bit weights for fast inference on CPUs with bf16.

    It packs at the first evaluation and never unpacks for training, and its packed matmul has no gradient.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _to_dtype_of_weight(head: nn.Linear, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].to(head.weight.dtype), *inputs[1:])
