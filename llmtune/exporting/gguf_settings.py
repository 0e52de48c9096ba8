"""Hyperparameters of a GGUF file."""

from __future__ import annotations

import math
from typing import Any

from llmtune.exporting.gguf_families import Config, Family, head_size, rope_of

WRITTEN = {
    "rms_norm_eps": "add_layer_norm_rms_eps",
    "layer_norm_eps": "add_layer_norm_eps",
    "norm_epsilon": "add_layer_norm_eps",
    "norm_eps": "add_layer_norm_eps",
    "num_experts": "add_expert_count",
    "num_local_experts": "add_expert_count",
    "num_experts_per_tok": "add_expert_used_count",
    "moe_intermediate_size": "add_expert_feed_forward_length",
    "shared_expert_intermediate_size": "add_expert_shared_feed_forward_length",
    "attn_logit_softcapping": "add_attn_logit_softcapping",
    "final_logit_softcapping": "add_final_logit_softcapping",
    "clip_qkv": "add_clamp_kqv",
    "use_parallel_residual": "add_parallel_residual",
    "attention_multiplier": "add_attention_scale",
    "embedding_multiplier": "add_embedding_scale",
    "residual_multiplier": "add_residual_scale",
    "logits_scaling": "add_logit_scale",
    "logit_scale": "add_logit_scale",
}
"""Methods of gguf.GGUFWriter by the names of config.json."""

OLMO_EPSILON = 1e-5
"""Of OLMo's norms, which have no weights; its config.json does not name it."""


def add_settings(writer: Any, family: Family, config: Config, gguf_type: str, rows: int) -> None:
    """Write the hyperparameters. `rows`: of the embedding, padding included."""
    import gguf

    heads = config["num_attention_heads"]
    kinds = gguf.LlamaFileType
    types = {"f32": kinds.ALL_F32, "f16": kinds.MOSTLY_F16, "bf16": kinds.MOSTLY_BF16, "q8_0": kinds.MOSTLY_Q8_0}
    writer.add_file_type(types[gguf_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(rows)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    if family.arch == "olmo":
        writer.add_layer_norm_eps(OLMO_EPSILON)
    done = set()
    for name, method in WRITTEN.items():
        if config.get(name) is not None and method not in done:
            getattr(writer, method)(config[name])
            done.add(method)
    if family.has_window:
        writer.add_sliding_window(config["sliding_window"])
    _add_rope(writer, config)


def _add_rope(writer: Any, config: Config) -> None:
    import gguf

    rope = rope_of(config)
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
    writer.add_rope_dimension_count(int(head_size(config) * share))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if "sliding_attention" in (config.get("rope_parameters") or {}):
        writer.add_rope_freq_base_swa(float(rope_of(config, "sliding_attention")["rope_theta"]))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_attn_factors(_longrope_factor(config, rope))
    context = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    if context and rope["rope_type"] in ("linear", "yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(int(context))


def _longrope_factor(config: Config, rope: dict[str, Any]) -> float:
    """Return what cos and sin are multiplied by, since the context is longer than it was."""
    if rope.get("attention_factor"):
        return float(rope["attention_factor"])
    before = rope.get("original_max_position_embeddings") or config["original_max_position_embeddings"]
    longer = rope.get("factor") or config["max_position_embeddings"] / before
    return math.sqrt(1 + math.log(longer) / math.log(before)) if longer > 1 else 1.0
