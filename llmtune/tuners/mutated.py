"""PiSSA and OLoRA initialise adapters from the base weights, and subtract that part from the base.

A checkpoint holds the difference to that beginning as a plain LoRA adapter of twice the rank, for the base as it was:
`W - B0 A0 + B A` is `W + [B, -B0] [A; A0]`. Both halves lie in the file, so that a run can be resumed from it.
"""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmtune.checkpoint import ADAPTER_CONFIG
from llmtune.errors import CheckpointError
from llmtune.utils.files import write_json

Beginning = dict[str, tuple[Tensor, Tensor]]
"""A0 and B0 of each adapted layer, by the layer's full name."""


def save_as_difference(tuned: Any) -> Any:
    """Make checkpoints of a PiSSA or OLoRA model fit the original base, and resumable."""
    beginning = {
        name: (layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone())
        for name, layer in _layers(tuned).items()
    }
    # upstream: peft 0.21.2 peft/peft_model.py: save_pretrained needs a saved initial adapter, and cannot be resumed
    tuned.save_pretrained = partial(_save, tuned, tuned.save_pretrained, beginning)
    # upstream: peft 0.21.2 no issue: load_adapter does not restore the base weights of that run
    tuned.load_adapter = partial(_resume, tuned, beginning)
    return tuned


def _layers(tuned: Any) -> dict[str, Any]:
    return {name: module for name, module in tuned.named_modules() if "default" in getattr(module, "lora_A", {})}


def _save(tuned: Any, own_save: Any, beginning: Beginning, folder: str, **options: Any) -> None:
    from safetensors.torch import load_file, save_file

    own_save(folder, **options)
    file = Path(folder) / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, (down, up) in beginning.items():
        for part, tensor, axis in (("lora_A", down, 0), ("lora_B", -up, 1)):
            key = f"{name}.{part}.weight"
            tensors[key] = torch.cat([tensors[key], tensor.to(tensors[key])], axis).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    config_file = Path(folder) / ADAPTER_CONFIG
    config = json.loads(config_file.read_text(encoding="utf-8"))
    growth = math.sqrt(2) if config["use_rslora"] else 2  # the scale, alpha by rank or by its root, must stay
    config |= {"init_lora_weights": True, "r": config["r"] * 2, "lora_alpha": config["lora_alpha"] * growth}
    write_json(config_file, config)


def _resume(tuned: Any, beginning: Beginning, folder: str, *_: Any, **__: Any) -> None:
    """Load trained adapters and their initial values from a checkpoint, and restore the base of that run."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    for name, layer in _layers(tuned).items():
        try:
            downs, ups = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        except KeyError as err:
            raise CheckpointError(f"{folder} has no adapter for {name}: resume with the flags of that run.") from err
        rank = layer.r["default"]
        if len(downs) != 2 * rank:
            raise CheckpointError(f"{folder} is of --lora_rank {len(downs) // 2}, and this run of {rank}.")
        weight = layer.get_base_layer().weight
        here, there = beginning[name], (downs[rank:].to(weight.device), -ups[:, rank:].to(weight.device))
        change = layer.scaling["default"] * (here[1] @ here[0] - there[1] @ there[0])
        weight.data += change.to(weight.dtype)
        beginning[name] = there
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = downs[:rank], ups[:, :rank]
    set_peft_model_state_dict(tuned, tensors)
