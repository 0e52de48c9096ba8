"""InternLM2 on LlamaForCausalLM: its fused rows go by group of heads.

Source: modeling_internlm2.py of internlm2-7b.
"""

from __future__ import annotations

from llmtune.models.ports.port import Config, Modules, Port, Rows, carry, is_of


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
    )
    rope = {"rope_type": "default", "rope_theta": float(old.get("rope_theta", 10000))}
    scaling = old.get("rope_scaling")
    if scaling:
        rope |= {"rope_type": scaling.get("type") or scaling["rope_type"], "factor": float(scaling["factor"])}
    return new | {"model_type": "llama", "attention_bias": bool(old.get("bias", True)), "rope_parameters": rope}


def modules(new: Config) -> Modules:
    layer = "model.layers.{n}."
    return {
        "model.tok_embeddings": "model.embed_tokens",
        "model.norm": "model.norm",
        "output": "lm_head",
        "model.layers.{n}.attention_norm": layer + "input_layernorm",
        "model.layers.{n}.ffn_norm": layer + "post_attention_layernorm",
        "model.layers.{n}.attention.wqkv": _groups(new),
        "model.layers.{n}.attention.wo": layer + "self_attn.o_proj",
        "model.layers.{n}.feed_forward.w1": layer + "mlp.gate_proj",
        "model.layers.{n}.feed_forward.w3": layer + "mlp.up_proj",
        "model.layers.{n}.feed_forward.w2": layer + "mlp.down_proj",
    }


def _groups(new: Config) -> dict[str, Rows]:
    """Each group is its query heads, one key head and one value head, one after the other."""
    heads: int = new["num_attention_heads"]
    groups: int = new.get("num_key_value_heads", heads)
    width = new["hidden_size"] // heads
    queries = heads // groups * width
    starts = [group * (queries + 2 * width) for group in range(groups)]
    return {
        "model.layers.{n}.self_attn.q_proj": tuple((start, start + queries) for start in starts),
        "model.layers.{n}.self_attn.k_proj": tuple((start + queries, start + queries + width) for start in starts),
        "model.layers.{n}.self_attn.v_proj": tuple(
            (start + queries + width, start + queries + 2 * width) for start in starts
        ),
    }


PORT = Port(
    family="InternLM2",
    model_class="transformers:LlamaForCausalLM",
    recognises=lambda old: is_of(old, "internlm2", "InternLM2ForCausalLM"),
    config=config,
    modules=modules,
)
