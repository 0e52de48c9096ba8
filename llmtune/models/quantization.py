"""Quantised weights: 4-bit and 8-bit at load time by our flags, and checkpoints saved quantised."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune.errors import MissingPackageError, UsageError
from llmtune.models.dtypes import dtype_name, torch_dtype
from llmtune.models.heads import SCORE
from llmtune.utils.files import read_json
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
    from transformers import BitsAndBytesConfig

    # Naming any module replaces transformers' own choice, which is the head. It reads a name as the end of a full
    # one, and as a regular expression from its start: the second covers what lies within a module.
    names = info.skip_quantization
    skipped = [HEAD, SCORE, *names, *(rf"(?:.*\.)?{re.escape(name)}" for name in names)] if names else None
    if args.quantization_bit == 8:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=torch_dtype(args.bnb_4bit_comp_dtype) if args.bnb_4bit_comp_dtype else dtype,
            bnb_4bit_quant_type=args.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=args.bnb_4bit_use_double_quant,
            llm_int8_skip_modules=skipped,
        )
    return {"quantization_config": config, "device_map": {"": str(device)}}


def _torchao_config(info: ModelInfo) -> Any:
    need_torchao()
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=[HEAD, SCORE, *info.skip_quantization])


def need_torchao() -> None:
    """Raise MissingPackageError if torchao is not installed; it is not imported."""
    need("torchao", "--quant_method torchao", extra="torchao")


def need_bitsandbytes(flag: str) -> None:
    """Raise MissingPackageError if bitsandbytes is not installed; importing it would take seconds."""
    need("bitsandbytes", flag, extra="quant")


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
    return f"4 bits ({config.bnb_4bit_quant_type}{double}; compute dtype {dtype_name(config.bnb_4bit_compute_dtype)})"


# Checkpoints saved quantised, recognised by config.json


NAMES = {"gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "torchao": "torchao"}
GPTQMODEL = "pip install --no-build-isolation --no-deps gptqmodel optimum tokenicer logbar defuser"
PACKAGES = {
    "gptq": (("gptqmodel", "optimum"), f"{GPTQMODEL}, then: pip install threadpoolctl device-smi pypcre"),
    "awq": (("gptqmodel",), f"{GPTQMODEL}, then: pip install threadpoolctl device-smi pypcre"),
    "bitsandbytes": (("bitsandbytes",), "pip install 'llmtune[quant]'"),
    "torchao": (("torchao",), "pip install 'llmtune[torchao]'"),
}
# Of the backends that train. On a CPU gptqmodel would first compile one of its own, for minutes, which saves nothing
# beside the backward pass.
BACKENDS = {"gptq": ("torch", "auto_trainable"), "awq": ("torch_awq", "auto_trainable")}


def saved_quantization(folder: str | Path) -> dict[str, Any]:
    """Return the quantization_config of config.json; empty if not quantised."""
    found = read_json(Path(folder) / "config.json").get("quantization_config")
    return dict(found) if isinstance(found, Mapping) else {}


def saved_quantization_name(config: Mapping[str, Any]) -> str:
    """Describe a quantization_config, e.g. `GPTQ, 4 bits`."""
    method = _method(config)
    bits = config.get("bits") or (4 if config.get("load_in_4bit") else 8 if config.get("load_in_8bit") else None)
    return NAMES.get(method, method) + (f", {bits} bits" if bits else "")


def check_prequantized(folder: Path, *, sft_type: str | None, quantization_bit: int, fp8_base: bool = False) -> None:
    """Refuse what weights that are already quantised do not support.

    Args:
        sft_type: None in inference.

    Raises:
        UsageError: Full fine-tuning, or quantising again, to fp8 too. MissingPackageError: The package that reads them.
    """
    found = saved_quantization(folder)
    if not found:
        return
    name = saved_quantization_name(found)
    if sft_type == "full":
        raise UsageError(
            f"{folder} was saved quantised ({name}), and quantised weights cannot be trained: use --sft_type "
            "lora, or the folder of the same model before it was quantised."
        )
    if quantization_bit:
        raise UsageError(
            f"--quantization_bit {quantization_bit}: {folder} is already quantised ({name}). Remove the flag."
        )
    if fp8_base:
        raise UsageError(
            f"--fp8_base true: {folder} is already quantised ({name}). Remove the flag, or give the folder of the same "
            "model before it was quantised."
        )
    modules, command = PACKAGES.get(_method(found), ((), ""))
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingPackageError(f"{folder} was saved quantised ({name}); reading it needs {missing[0]}: {command}")


def loads_with(saved: Mapping[str, Any], *, on_gpu: bool) -> dict[str, Any]:
    """Return the configuration with a backend that supports training, if there is a choice."""
    backends = BACKENDS.get(_method(saved))
    return dict(saved) if backends is None else dict(saved) | {"backend": backends[on_gpu]}


def leave_uncompiled(model: Any) -> None:
    """Make GPTQ layers unpack their weights eagerly."""
    for module in model.modules():
        if hasattr(module, "qweight"):
            # upstream: gptqmodel 7.7.0 gptqmodel/nn_modules/qlinear/torch.py: compiled on CPUs: 30 s, a C++ compiler
            vars(module).pop("dequantize_weight", None)


def _method(config: Mapping[str, Any]) -> str:
    kind = config.get("quant_method")
    if kind is None and (config.get("load_in_4bit") or config.get("load_in_8bit")):
        kind = "bitsandbytes"
    return str(getattr(kind, "value", kind)).lower()
