"""Weights in 4 or 8 bits through bitsandbytes: from our flags to its configuration, and what came of it."""

from __future__ import annotations

import importlib.util
import re
from typing import TYPE_CHECKING, Any

from llmtune.errors import MissingPackageError

if TYPE_CHECKING:
    import torch

    from llmtune.arguments.groups import QuantizationArguments
    from llmtune.models.info import ModelInfo

__all__ = [
    "is_bitsandbytes_optimizer",
    "is_quantized",
    "need_bitsandbytes",
    "quantization_note",
    "quantization_options",
]

HEAD = "lm_head"
QUANTIZED_LAYERS = ("Linear4bit", "Linear8bitLt")


def quantization_options(
    args: QuantizationArguments, info: ModelInfo, dtype: torch.dtype, device: str | torch.device
) -> dict[str, Any]:
    """What `from_pretrained` must be told to quantise while it loads; nothing where `--quantization_bit` is 0.

    Args:
        dtype: Of what is not quantised; 4-bit weights are computed in it unless `--bnb_4bit_comp_dtype` says else.
        device: Where the weights go; a quantised model cannot be moved later.

    Raises:
        MissingPackageError: bitsandbytes is not installed.
    """
    if not args.quantization_bit:
        return {}
    need_bitsandbytes(f"--quantization_bit {args.quantization_bit}")
    import torch
    from transformers import BitsAndBytesConfig

    by_name = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    # Naming any module replaces transformers' own choice, which is the head. It reads a name as the end of a full
    # one, and as a regular expression from its start: the second covers what lies within a module.
    names = info.skip_quantization
    skipped = [HEAD, *names, *(rf"(?:.*\.)?{re.escape(name)}" for name in names)] if names else None
    if args.quantization_bit == 8:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=by_name[args.bnb_4bit_comp_dtype] if args.bnb_4bit_comp_dtype else dtype,
            bnb_4bit_quant_type=args.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=args.bnb_4bit_use_double_quant,
            llm_int8_skip_modules=skipped,
        )
    return {"quantization_config": config, "device_map": {"": str(device)}}


def need_bitsandbytes(flag: str) -> None:
    """Raise MissingPackageError where bitsandbytes is not installed; it is not imported, which takes seconds."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingPackageError(f"{flag} needs bitsandbytes. Install it with: pip install 'llmtune[quant]'")


def is_bitsandbytes_optimizer(name: str) -> bool:
    """Whether transformers takes the optimizer of this name from bitsandbytes; `adamw_torch_8bit` is torchao's."""
    parts = name.split("_")
    return bool({"bnb", "paged", "8bit", "ademamix"} & set(parts) or name == "lion_32bit") and "torch" not in parts


def is_quantized(model: Any) -> bool:
    return getattr(model, "quantization_method", None) is not None


def quantization_note(model: Any) -> str:
    """One line: which layers are quantised and how, and how much the weights take."""
    linear = [(name, type(module).__name__) for name, module in model.named_modules() if _is_linear(module)]
    kept = [name.rsplit(".", 1)[-1] for name, kind in linear if kind not in QUANTIZED_LAYERS]
    config = model.config.quantization_config
    how = "8 bits (int8)"
    if config.load_in_4bit:
        double = ", constants too" if config.bnb_4bit_use_double_quant else ""
        how = f"4 bits ({config.bnb_4bit_quant_type}{double}; computed in {_short(config.bnb_4bit_compute_dtype)})"
    whole = f" {', '.join(dict.fromkeys(kept))} left whole;" if kept else ""
    count = f"{len(linear) - len(kept)} of {len(linear)} linear layers are quantised to {how};"
    return f"{count}{whole} all weights take {model.get_memory_footprint() / 1e6:,.1f} MB."


def _is_linear(module: Any) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear)


def _short(dtype: Any) -> str:
    from llmtune.models.loading import dtype_name

    return dtype_name(dtype)
