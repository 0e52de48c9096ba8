"""ChatGLM2 and ChatGLM3 on GlmForCausalLM, whose rotation is theirs: neighbours in pairs, half of each head.

Source: modeling_chatglm.py of chatglm2-6b and chatglm3-6b; rope_ratio, which multiplies the base, of chatglm3-6b-32k
as vLLM's chatglm.py reads it.
"""

from __future__ import annotations

from llmtune.errors import ModelError
from llmtune.models.ports.port import Config, Modules, Port, carry, consecutive, is_of, refuse_unless

FAMILY = "ChatGLM"
ROTARY_BASE = 10000.0  # not a key of config.json


def config(old: Config) -> Config:
    if old.get("quantization_bit"):
        raise ModelError(
            f"This {FAMILY} checkpoint was saved in {old['quantization_bit']} bits by code of its own. "
            "Take the one without -int4 in its name (chatglm2-6b, chatglm3-6b) and give --quantization_bit 4."
        )
    refuse_unless(
        old,
        FAMILY,
        rmsnorm=True,
        post_layer_norm=True,
        apply_residual_connection_post_layernorm=False,
        add_bias_linear=False,
        multi_query_attention=True,
        fp32_residual_connection=False,
    )
    new = carry(
        old,
        "hidden_size",
        "num_attention_heads",
        "attention_dropout",
        vocab_size="padded_vocab_size",
        intermediate_size="ffn_hidden_size",
        num_hidden_layers="num_layers",
        max_position_embeddings="seq_length",
        rms_norm_eps="layernorm_epsilon",
    )
    rope_theta = ROTARY_BASE * float(old.get("rope_ratio") or 1.0)
    return new | {
        "model_type": "glm",
        "num_key_value_heads": old["multi_query_group_num"],
        "head_dim": old["kv_channels"],
        "attention_bias": bool(old.get("add_qkv_bias", False)),
        # GlmConfig's own are those of another vocabulary; null, as it is, would bring them back
        "eos_token_id": 2 if old.get("eos_token_id") is None else old["eos_token_id"],
        "pad_token_id": 0 if old.get("pad_token_id") is None else old["pad_token_id"],
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta, "partial_rotary_factor": 0.5},
        "tie_word_embeddings": old.get("tie_word_embeddings", False),
    }


def modules(new: Config) -> Modules:
    old_layer, layer = "transformer.encoder.layers.{n}.", "model.layers.{n}."
    queries = new["num_attention_heads"] * new["head_dim"]
    keys = new["num_key_value_heads"] * new["head_dim"]
    attention = layer + "self_attn."
    return {
        "transformer.embedding.word_embeddings": "model.embed_tokens",
        "transformer.encoder.final_layernorm": "model.norm",
        "transformer.output_layer": "lm_head",
        old_layer + "input_layernorm": layer + "input_layernorm",
        old_layer + "post_attention_layernorm": layer + "post_attention_layernorm",
        old_layer + "self_attention.query_key_value": consecutive(
            {attention + "q_proj": queries, attention + "k_proj": keys, attention + "v_proj": keys}
        ),
        old_layer + "self_attention.dense": attention + "o_proj",
        old_layer + "mlp.dense_h_to_4h": layer + "mlp.gate_up_proj",
        old_layer + "mlp.dense_4h_to_h": layer + "mlp.down_proj",
    }


def _recognises(old: Config) -> bool:
    """ChatGLM-6B of March 2023 has the same model_type and is another model: it has no groups of heads."""
    is_chat = is_of(old, "chatglm", "ChatGLMModel", "ChatGLMForConditionalGeneration")
    return is_chat and "multi_query_group_num" in old and "vision_config" not in old


PORT = Port(
    family=FAMILY,
    model_class="transformers:GlmForCausalLM",
    recognises=_recognises,
    config=config,
    modules=modules,
    biased=("q_proj", "k_proj", "v_proj"),
)
