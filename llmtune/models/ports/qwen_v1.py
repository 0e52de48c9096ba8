"""Qwen of 2023 (7B, 14B, 72B, and the language model of Qwen-VL) on Qwen2ForCausalLM.

Source: modeling_qwen.py and config.json of the releases of August and December 2023.
"""

from __future__ import annotations

from llmtune.models.ports.port import Config, Modules, Port, carry, consecutive, is_of, refuse_unless

FAMILY = "Qwen v1"


def config(old: Config) -> Config:
    refuse_unless(old, FAMILY, no_bias=True, scale_attn_weights=True, rotary_pct=1.0)
    heads = old["num_attention_heads"] if "num_attention_heads" in old else old["n_head"]
    both_halves = old["intermediate_size"] if "intermediate_size" in old else old["ffn_hidden_size"]
    new = carry(
        old,
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "max_position_embeddings",
        rms_norm_eps="layer_norm_epsilon",
        head_dim="kv_channels",
        attention_dropout="attn_dropout_prob",
    )
    if "n_embd" in old:  # the spelling of the first release; its padded_vocab_size is that of the tensors
        new |= carry(old, hidden_size="n_embd", num_hidden_layers="n_layer", max_position_embeddings="n_positions")
        new |= carry(old, vocab_size="padded_vocab_size", attention_dropout="attn_pdrop")
    if "max_position_embeddings" not in new:
        new |= carry(old, max_position_embeddings="seq_length")
    if "dtype" not in new:
        new["dtype"] = "bfloat16" if old.get("bf16") else "float16" if old.get("fp16") else "float32"
    return new | {
        "model_type": "qwen2",
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": both_halves // 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(old.get("rotary_emb_base", 10000))},
        "tie_word_embeddings": old.get("tie_word_embeddings", False),
    }


def modules(new: Config) -> Modules:
    width = new["num_attention_heads"] * new.get("head_dim", new["hidden_size"] // new["num_attention_heads"])
    layer = "model.layers.{n}."
    return {
        "transformer.wte": "model.embed_tokens",
        "transformer.ln_f": "model.norm",
        "lm_head": "lm_head",
        "transformer.h.{n}.ln_1": layer + "input_layernorm",
        "transformer.h.{n}.ln_2": layer + "post_attention_layernorm",
        "transformer.h.{n}.attn.c_attn": consecutive({f"{layer}self_attn.{name}_proj": width for name in "qkv"}),
        "transformer.h.{n}.attn.c_proj": layer + "self_attn.o_proj",
        "transformer.h.{n}.mlp.w1": layer + "mlp.up_proj",  # out = c_proj(w1(x) * silu(w2(x))): w2 is the gate
        "transformer.h.{n}.mlp.w2": layer + "mlp.gate_proj",
        "transformer.h.{n}.mlp.c_proj": layer + "mlp.down_proj",
    }


def warnings(old: Config) -> list[str]:
    found = []
    tricks = [key for key in ("use_dynamic_ntk", "use_logn_attn") if old.get(key)]
    if tricks:
        length = old.get("seq_length") or old.get("n_positions")
        found.append(
            f"Beyond {length} tokens the original rescales its attention in generation ({', '.join(tricks)}); "
            "here it does not. Up to there, and in training at any length, both are equal."
        )
    if "visual" in old:
        found.append("Only the language model of Qwen-VL is loaded: pictures are not seen.")
    return found


PORT = Port(
    family=FAMILY,
    model_class="transformers:Qwen2ForCausalLM",
    recognises=lambda old: is_of(old, "qwen", "QWenLMHeadModel"),
    config=config,
    modules=modules,
    leaves_out=(r"transformer\.visual\..*",),
    biased=("q_proj", "k_proj", "v_proj"),
    warnings=warnings,
)
