"""Checkpoints in the original layouts, made from native models by inverse maps that share no code with the ports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]


def write(folder: Path, config: dict[str, Any], tensors: Tensors, *, shards: int = 1, pickle: bool = False) -> Path:
    """A model folder; more than one shard gets an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    suffix, stem = ("bin", "pytorch_model") if pickle else ("safetensors", "model")
    weight_map = {}
    names = list(tensors)
    for shard in range(shards):
        file = f"{stem}.{suffix}" if shards == 1 else f"{stem}-{shard + 1:05}-of-{shards:05}.{suffix}"
        part = {name: tensors[name].clone().contiguous() for name in names[shard::shards]}
        weight_map |= dict.fromkeys(part, file)
        if pickle:
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file)
    if shards > 1:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def random_model(model_class: Any, config: Any) -> Any:
    """Not as initialised: norms and biases away from 1 and 0, so that exchanging them shows."""
    torch.manual_seed(11)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.2 if parameter.dim() > 1 else 0.5
            parameter.copy_(torch.randn_like(parameter) * scale + (1.0 if parameter.dim() == 1 else 0.0))
    return model


def rename(name: str, *pairs: tuple[str, str]) -> str:
    for native, original in pairs:
        name = name.replace(native, original)
    return name


def qwen(native: Tensors, layers: int) -> Tensors:
    pairs = (
        ("model.embed_tokens", "transformer.wte"),
        ("model.norm", "transformer.ln_f"),
        ("model.layers", "transformer.h"),
        ("input_layernorm", "ln_1"),
        ("post_attention_layernorm", "ln_2"),
        ("self_attn.o_proj", "attn.c_proj"),
        ("gate_proj", "w2"),
        ("up_proj", "w1"),
        ("down_proj", "c_proj"),
    )
    found = {rename(name, *pairs): tensor for name, tensor in native.items() if ".self_attn.q" not in name}
    found = {name: tensor for name, tensor in found.items() if "self_attn" not in name}
    for n in range(layers):
        for leaf in ("weight", "bias"):
            parts = [native[f"model.layers.{n}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            found[f"transformer.h.{n}.attn.c_attn.{leaf}"] = torch.cat(parts)
    return found


def chatglm(native: Tensors, layers: int) -> Tensors:
    pairs = (
        ("model.embed_tokens", "transformer.embedding.word_embeddings"),
        ("model.norm", "transformer.encoder.final_layernorm"),
        ("lm_head", "transformer.output_layer"),
        ("model.layers", "transformer.encoder.layers"),
        ("self_attn.o_proj", "self_attention.dense"),
        ("mlp.gate_up_proj", "mlp.dense_h_to_4h"),
        ("mlp.down_proj", "mlp.dense_4h_to_h"),
    )
    found = {rename(name, *pairs): tensor for name, tensor in native.items()}
    found = {name: tensor for name, tensor in found.items() if "self_attn" not in name}
    for n in range(layers):
        for leaf in ("weight", "bias"):
            parts = [native[f"model.layers.{n}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            found[f"transformer.encoder.layers.{n}.self_attention.query_key_value.{leaf}"] = torch.cat(parts)
    return found | {"transformer.rotary_pos_emb.inv_freq": torch.ones(2)}


def baichuan(native: Tensors, layers: int) -> Tensors:
    found = {name: tensor for name, tensor in native.items() if not any(f".{part}_proj" in name for part in "qkv")}
    for n in range(layers):
        parts = [native[f"model.layers.{n}.self_attn.{part}_proj.weight"] for part in "qkv"]
        found[f"model.layers.{n}.self_attn.W_pack.weight"] = torch.cat(parts)
    return found


def internlm2(native: Tensors, layers: int, *, groups: int, width: int) -> Tensors:
    pairs = (
        ("model.embed_tokens", "model.tok_embeddings"),
        ("lm_head", "output"),
        ("input_layernorm", "attention_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attention.wo"),
        ("mlp.gate_proj", "feed_forward.w1"),
        ("mlp.down_proj", "feed_forward.w2"),
        ("mlp.up_proj", "feed_forward.w3"),
    )
    found = {rename(name, *pairs): tensor for name, tensor in native.items()}
    found = {name: tensor for name, tensor in found.items() if "self_attn" not in name}
    for n in range(layers):
        attention = f"model.layers.{n}.self_attn."
        q, k, v = (native[f"{attention}{part}_proj.weight"] for part in "qkv")
        size = q.shape[1]
        by_group = [
            q.view(groups, -1, width, size),
            k.view(groups, 1, width, size),
            v.view(groups, 1, width, size),
        ]
        found[f"model.layers.{n}.attention.wqkv.weight"] = torch.cat(by_group, 1).reshape(-1, size)
    return found
