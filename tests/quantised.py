"""GPTQ and AWQ checkpoints of the embedded model, rounded to nearest and packed here: no calibration, no compiler."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight outputs lies in which place of a 32-bit number, the lowest bits first."""


def pack_rows(numbers: Tensor, bits: int) -> Tensor:
    """[N, M] of numbers below 2^bits -> [N * bits / 32, M] of int32, the first in the lowest bits."""
    per_int = 32 // bits
    shifted = numbers.view(-1, per_int, numbers.shape[1]).long() << (torch.arange(per_int) * bits)[:, None]
    total = shifted.sum(1)
    return torch.where(total >= 2**31, total - 2**32, total).int()


def rounded(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, int]:
    """Numbers [in, out], scales [groups, out] and the one zero: symmetric, to the nearest."""
    by_input = weight.T.reshape(-1, GROUP, weight.shape[0])
    zero = 2 ** (bits - 1)
    scales = by_input.abs().amax(1) / (zero - 1)
    numbers = (by_input / scales[:, None]).round() + zero
    return numbers.flatten(0, 1), scales, zero


def dequantised(weight: Tensor, bits: int) -> Tensor:
    numbers, scales, zero = rounded(weight, bits)
    return ((numbers - zero) * scales.half().float().repeat_interleave(GROUP, 0)).T


def gptq(weight: Tensor, bits: int) -> dict[str, Tensor]:
    numbers, scales, zero = rounded(weight, bits)
    zeros = torch.full_like(scales, zero - 1)  # this format stores them less one
    return {
        "qweight": pack_rows(numbers, bits),
        "qzeros": pack_rows(zeros.T, bits).T.contiguous(),
        "scales": scales.half(),
        "g_idx": (torch.arange(weight.shape[1]) // GROUP).int(),
    }


def awq(weight: Tensor, bits: int) -> dict[str, Tensor]:
    numbers, scales, zero = rounded(weight, bits)

    def pack(values: Tensor) -> Tensor:
        return pack_rows(values.view(len(values), -1, 8)[..., list(AWQ_ORDER)].flatten(1).T, bits).T.contiguous()

    return {"qweight": pack(numbers), "qzeros": pack(torch.full_like(scales, zero)), "scales": scales.half()}


def quantise_folder(source: Path, folder: Path, method: str, bits: int, *, whole: tuple[str, ...] = ()) -> Path:
    """A copy of a model folder with the linear layers of its decoder packed. `whole`: names of layers that stay."""
    shutil.copytree(source, folder)
    found: dict[str, Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if ".layers." not in name or not module.endswith("_proj") or module.endswith(whole or ("?",)):
            found[name] = tensor
            continue
        packed = gptq(tensor, bits) if method == "gptq" else awq(tensor, bits)
        found |= {f"{module}.{leaf}": part for leaf, part in packed.items()}
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    own: dict[str, Any] = {"quant_method": method, "bits": bits, "group_size": GROUP}
    if method == "gptq":
        own |= {"desc_act": False, "sym": True, "checkpoint_format": "gptq"}
    else:
        own |= {"version": "gemm", "zero_point": True, "modules_to_not_convert": list(whole) or None}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": own}))
    return folder
