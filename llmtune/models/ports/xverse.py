"""XVERSE on LlamaForCausalLM: names and arithmetic are Llama's.

Source: no copy of modeling_xverse.py was at hand; sglang/srt/models/xverse.py builds it from Llama's parts.
"""

from __future__ import annotations

from llmtune.models.ports.port import Config, Port, carry, is_of, llama_modules


def config(old: Config) -> Config:
    new = carry(
        old,
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
        "head_dim",
    )
    rope = {"rope_type": "default", "rope_theta": float(old.get("rope_theta", 10000))}
    scaling = dict(old.get("rope_scaling") or {})
    if scaling:
        rope |= {"rope_type": scaling.pop("type", "default"), **scaling}
    return new | {"model_type": "llama", "rope_parameters": rope}


PORT = Port(
    family="XVERSE",
    model_class="transformers:LlamaForCausalLM",
    recognises=lambda old: is_of(old, "xverse", "XverseForCausalLM"),
    config=config,
    modules=llama_modules,
)
