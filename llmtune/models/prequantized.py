"""Checkpoints saved quantised, recognised by config.json. No torch here."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtune.errors import MissingPackageError, UsageError
from llmtune.utils.files import read_json

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


def check_prequantized(folder: Path, *, sft_type: str | None, quantization_bit: int) -> None:
    """Refuse what weights that are already quantised do not support.

    Args:
        sft_type: None in inference.

    Raises:
        UsageError: Full fine-tuning, or quantising again. MissingPackageError: The package that reads them.
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
