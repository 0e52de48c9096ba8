"""4-bit and 8-bit weights: from our flags to the quantisation at load time, and its report."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from llmtune.utils.system import need

if TYPE_CHECKING:
    import torch

    from llmtune.arguments.groups import QuantizationArguments
    from llmtune.models.info import ModelInfo


HEAD = "lm_head"
QUANTIZED_LAYERS = ("Linear4bit", "Linear8bitLt")


def quantization_options(
    args: QuantizationArguments, info: ModelInfo, dtype: torch.dtype, device: str | torch.device
) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that quantise at load time; empty if `--quantization_bit` is 0.

    Args:
        dtype: Of unquantised weights; also the compute dtype of 4-bit weights without `--bnb_4bit_comp_dtype`.
        device: Of the weights; a quantised model cannot be moved later.

    Raises:
        MissingPackageError: The quantisation library is not installed.
    """
    if not args.quantization_bit:
        return {}
    if args.quant_method == "torchao":
        return {"quantization_config": _torchao_config(info), "device_map": {"": str(device)}}
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


def _torchao_config(info: ModelInfo) -> Any:
    need_torchao()
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=[HEAD, *info.skip_quantization])


def need_torchao() -> None:
    """Raise MissingPackageError if torchao is not installed; it is not imported."""
    need("torchao", "--quant_method torchao", extra="torchao")


def need_bitsandbytes(flag: str) -> None:
    """Raise MissingPackageError if bitsandbytes is not installed; importing it would take seconds."""
    need("bitsandbytes", flag, extra="quant")


def is_bitsandbytes_optimizer(name: str) -> bool:
    """Whether transformers takes the optimizer of this name from bitsandbytes; `adamw_torch_8bit` is torchao's."""
    parts = name.split("_")
    return bool({"bnb", "paged", "8bit", "ademamix"} & set(parts) or name == "lion_32bit") and "torch" not in parts


def is_quantized(model: Any) -> bool:
    return getattr(model, "quantization_method", None) is not None


def is_packed(module: Any) -> bool:
    """Whether a module is a GPTQ or AWQ linear layer, whose weights are packed integers."""
    return hasattr(module, "qweight") and hasattr(module, "in_features")


def is_linear(module: Any) -> bool:
    """Whether a module is a linear layer, quantised or not."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D) or is_packed(module)


def quantization_note(model: Any) -> str:
    """One line: which layers are quantised and how, and the size of all weights."""
    linear = [(name, module) for name, module in model.named_modules() if is_linear(module)]
    kept = [name.rsplit(".", 1)[-1] for name, module in linear if not _is_quantized_layer(module)]
    others = f" not quantised: {', '.join(dict.fromkeys(kept))};" if kept else ""
    count = f"{len(linear) - len(kept)} of {len(linear)} linear layers in {_how(model)};"
    return f"{count}{others} all weights take {model.get_memory_footprint() / 1e6:,.1f} MB"


def _is_quantized_layer(module: Any) -> bool:
    of_torchao = type(getattr(module, "weight", None)).__module__.startswith("torchao")
    return type(module).__name__ in QUANTIZED_LAYERS or is_packed(module) or of_torchao


def _how(model: Any) -> str:
    config = model.config.quantization_config
    method = str(getattr(model.quantization_method, "value", model.quantization_method))
    if method == "torchao":
        return "8 bits (torchao, int8)"
    if method != "bitsandbytes":
        kernel = next((type(module).__name__ for module in model.modules() if is_packed(module)), "no kernel")
        return f"{config.bits} bits ({method.upper()}, group size {config.group_size}; kernel {kernel})"
    if not config.load_in_4bit:
        return "8 bits (int8)"
    double = ", double quantisation" if config.bnb_4bit_use_double_quant else ""
    return f"4 bits ({config.bnb_4bit_quant_type}{double}; compute dtype {_short(config.bnb_4bit_compute_dtype)})"


def _short(dtype: Any) -> str:
    from llmtune.models.loading import dtype_name

    return dtype_name(dtype)
