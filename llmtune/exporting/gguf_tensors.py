"""Tensors of a GGUF file: which there are, and how each is read from a checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from llmtune.errors import ModelError
from llmtune.exporting.gguf_families import Config, Family, head_size, rope_of

EXPERT = re.compile(r"(?<=\.experts)\.(\d+)(?=\.)")


@dataclass(frozen=True)
class GgufTensor:
    """One tensor to write. `kind`: a gguf.GGMLQuantizationType."""

    name: str
    shape: tuple[int, ...]
    kind: Any
    read: Callable[[], torch.Tensor]

    def layout(self) -> tuple[tuple[int, ...], Any, int]:
        """Return shape, numpy dtype and size in bytes, as in the file."""
        import gguf
        import numpy as np

        plain = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}
        if self.kind in plain:
            dtype = np.dtype(plain[self.kind])
            return self.shape, dtype, math.prod(self.shape) * dtype.itemsize
        packed = gguf.quants.quant_shape_to_byte_shape(self.shape, self.kind)
        return packed, np.dtype(np.uint8), math.prod(packed)


def plan_tensors(tensors: dict[str, Any], family: Family, config: Config, gguf_type: str) -> Iterator[GgufTensor]:
    """Return the tensors of the file: vectors and routers in fp32, other matrices in the requested type.

    Raises:
        ModelError: A tensor that is not in gguf's tables.
    """
    import gguf

    kinds = gguf.GGMLQuantizationType
    wanted = kinds[gguf_type.upper()]
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.arch)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for source, parts in _with_experts(tensors).items():
        if source.endswith(".rotary_emb.inv_freq"):
            continue
        if source == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(f"its tensor {source} has no name in GGUF")
        one = parts[0]
        shape = tuple(one.get_shape() if hasattr(one, "get_shape") else one.shape)
        shape = shape if len(parts) == 1 else (len(parts), *shape)
        fits = wanted is not kinds.Q8_0 or shape[-1] % 32 == 0
        is_small = len(shape) == 1 or ".ffn_gate_inp" in name
        kind = kinds.F32 if is_small else wanted if fits else kinds.F16
        change = partial(_changed, source=source, family=family, config=config)
        yield GgufTensor(name, shape, kind, partial(_read, parts, change))
    for name, factors in _rope_factors(config).items():
        yield GgufTensor(name, tuple(factors.shape), kinds.F32, partial(_itself, factors))


def _with_experts(tensors: dict[str, Any]) -> dict[str, list[Any]]:
    """Return each tensor as a list of one; those of the experts of a layer together, by number."""
    found: dict[str, dict[int, Any]] = {}
    for source, tensor in tensors.items():
        number = EXPERT.search(source)
        merged = EXPERT.sub("", source)
        found.setdefault(merged, {})[int(number[1]) if number else 0] = tensor
    return {source: [parts[number] for number in sorted(parts)] for source, parts in found.items()}


def _read(parts: list[Any], change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    if len(parts) == 1:
        return change(parts[0][...])
    return torch.stack([change(part[...]) for part in parts])


def _itself(factors: torch.Tensor) -> torch.Tensor:
    return factors


def _changed(found: torch.Tensor, *, source: str, family: Family, config: Config) -> torch.Tensor:
    if family.norm_offset and source.endswith("norm.weight"):
        return found.float() + family.norm_offset
    heads = _heads(source, family, config)
    if not heads:
        return found
    # RoPE pairs the first half of a head with the second in transformers, neighbours in llama.cpp.
    parts = found.reshape(heads, 2, found.shape[0] // heads // 2, *found.shape[1:])
    return parts.transpose(1, 2).reshape(found.shape)


def _heads(source: str, family: Family, config: Config) -> int:
    """Return the heads of a tensor whose rows have to be permuted for llama.cpp; 0 for all others."""
    if not family.permutes:
        return 0
    heads = int(config["num_attention_heads"])
    if ".self_attn.q_proj." in source:
        return heads
    return int(config.get("num_key_value_heads") or heads) if ".self_attn.k_proj." in source else 0


def _rope_factors(config: Config) -> dict[str, torch.Tensor]:
    rope = rope_of(config)
    if rope["rope_type"] == "llama3":
        return {"rope_freqs.weight": _llama3_factors(config)}
    if rope["rope_type"] == "longrope":
        return {f"rope_factors_{kind}.weight": torch.tensor(rope[f"{kind}_factor"]) for kind in ("long", "short")}
    return {}


def _llama3_factors(config: Config) -> torch.Tensor:
    """Return Llama 3.1's RoPE factors, which divide each pair's frequency, [head size / 2]."""
    rope, size = rope_of(config), head_size(config)
    turns = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2).float() / size)
    wave = 2 * math.pi / turns
    context, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = (context / wave - low) / (high - low)
    between = 1 / ((1 - share) / factor + share)
    found = torch.where(wave > context / low, torch.full_like(wave, factor), between)
    return torch.where(wave < context / high, torch.ones_like(wave), found)
