"""InternLM v1 on LlamaForCausalLM: the names are Llama's, and q, k, v and o have biases.

Source: modeling_internlm.py of internlm-7b; the key `rotary` is of its revision 1.1.
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
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
    )
    rotary = old.get("rotary") or {}
    rope = {"rope_type": "default", "rope_theta": float(rotary.get("base", 10000))}
    if rotary.get("type") == "dynamic":
        rope |= {"rope_type": "dynamic", "factor": float(rotary.get("scaling_factor", 1.0))}
    return new | {"model_type": "llama", "attention_bias": bool(old.get("bias", True)), "rope_parameters": rope}


PORT = Port(
    family="InternLM",
    model_class="transformers:LlamaForCausalLM",
    recognises=lambda old: is_of(old, "internlm", "InternLMForCausalLM"),
    config=config,
    modules=llama_modules,
    biased=("q_proj", "k_proj", "v_proj", "o_proj"),
)
