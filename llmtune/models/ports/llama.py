"""Ports to LlamaForCausalLM: Baichuan and Baichuan2, InternLM, InternLM2 and XVERSE.

Baichuan 13B has ALiBi and runs on a small subclass of it.

Source: modeling_baichuan.py of Baichuan-7B, Baichuan-13B-Base, Baichuan2-7B-Base and Baichuan2-13B-Base;
modeling_internlm.py of internlm-7b, whose key `rotary` is of its revision 1.1; modeling_internlm2.py of internlm2-7b.
No copy of modeling_xverse.py was at hand; sglang/srt/models/xverse.py builds it from Llama's parts.
"""

from __future__ import annotations

from typing import Any

from llmtune.errors import ModelError
from llmtune.models.ports.port import (
    LLAMA_MODULES,
    Config,
    Modules,
    Port,
    Slices,
    carry,
    consecutive,
    is_of,
    llama_modules,
)

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
    *("max_position_embeddings", "rms_norm_eps"),
)
VOCABULARY_OF_FIRST, VOCABULARY_OF_SECOND = 64000, 125696
ALIBI_TYPE = "llama_alibi"
ALIBI_CLASS = "llmtune.models.ports.modeling_llama_alibi:LlamaAlibiForCausalLM"


def _llama(old: Config, *keys: str, rope: Config | None = None, **more: Any) -> Config:
    """Return the arguments of LlamaConfig for a config.json with Llama's names."""
    base = {"rope_type": "default", "rope_theta": float(old.get("rope_theta", 10000))}
    return carry(old, *SIZES, *keys) | {"model_type": "llama", "rope_parameters": base | (rope or {}), **more}


# Baichuan


def _baichuan(old: Config) -> Config:
    new = _llama(old, model_type=ALIBI_TYPE if _has_alibi(old) else "llama")
    return new if "max_position_embeddings" in old else new | carry(old, max_position_embeddings="model_max_length")


def _baichuan_modules(new: Config) -> Modules:
    attention = "model.layers.{n}.self_attn."
    table: dict[str, str | dict[str, tuple[tuple[int, int], ...]]] = {name: name for name in LLAMA_MODULES}
    table[attention + "W_pack"] = consecutive({f"{attention}{name}_proj": new["hidden_size"] for name in "qkv"})
    return table


def _is_baichuan(old: Config) -> bool:
    return is_of(old, "baichuan", "BaichuanForCausalLM")  # the first release wrote BaiChuanForCausalLM


def _has_alibi(old: Config) -> bool:
    """Nothing in config.json says it: the sizes of 13B do, or the missing length of a rotary table."""
    sizes_of_13b = old.get("hidden_size") == 5120 and old.get("num_hidden_layers") == 40
    return sizes_of_13b or "max_position_embeddings" not in old


def _is_second(old: Config) -> bool:
    """Whether it is a Baichuan2, whose code alone normalises the rows of its head.

    No single key says it: z_loss_weight may have been lost, and vocabularies grow. All that either generation alone
    writes into config.json is looked at.

    Raises:
        ModelError: It says both.
    """
    vocabulary = old.get("vocab_size") or 0
    second = {
        "z_loss_weight": "z_loss_weight" in old,
        "tokenizer_class": old.get("tokenizer_class") == "BaichuanTokenizer",
        "vocab_size": vocabulary >= VOCABULARY_OF_SECOND,
    }
    first = {
        "architectures": "BaiChuanForCausalLM" in (old.get("architectures") or ()),
        "vocab_size": VOCABULARY_OF_FIRST <= vocabulary < VOCABULARY_OF_SECOND,
    }
    for_second, for_first = ([name for name, holds in one.items() if holds] for one in (second, first))
    if for_second and for_first:
        raise ModelError(
            f"This Baichuan checkpoint says of itself that it is a Baichuan2 ({', '.join(for_second)}) and that it is "
            f"not ({', '.join(for_first)}), whose heads differ. Correct its config.json: z_loss_weight is Baichuan2's."
        )
    return bool(for_second)


def _baichuan_warnings(old: Config) -> list[str]:
    if not _is_second(old):
        return []
    return [
        "Baichuan2 normalises the rows of its head at every step; here that is done once, at loading. Inference and "
        "LoRA are exact; full fine-tuning trains the head as a plain one."
    ]


def _baichuan_port(family: str, model_class: str, *, alibi: bool) -> Port:
    return Port(
        family=family,
        model_class=model_class,
        recognises=lambda old: _is_baichuan(old) and _has_alibi(old) == alibi,
        config=_baichuan,
        modules=_baichuan_modules,
        normalised_head=_is_second,
        warnings=_baichuan_warnings,
    )


# InternLM: the names are Llama's, and q, k, v and o have biases


def _internlm(old: Config) -> Config:
    rotary = old.get("rotary") or {}
    rope: Config = {"rope_theta": float(rotary.get("base", 10000))}
    if rotary.get("type") == "dynamic":
        rope |= {"rope_type": "dynamic", "factor": float(rotary.get("scaling_factor", 1.0))}
    return _llama(old, rope=rope, attention_bias=bool(old.get("bias", True)))


# InternLM2: its fused rows go by group of heads


def _internlm2(old: Config) -> Config:
    rope: Config = {}
    if scaling := old.get("rope_scaling"):
        rope = {"rope_type": scaling.get("type") or scaling["rope_type"], "factor": float(scaling["factor"])}
    return _llama(old, "num_key_value_heads", rope=rope, attention_bias=bool(old.get("bias", True)))


def _internlm2_modules(new: Config) -> Modules:
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


def _groups(new: Config) -> dict[str, Slices]:
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


# XVERSE: names and arithmetic are Llama's


def _xverse(old: Config) -> Config:
    rope = dict(old.get("rope_scaling") or {})
    if rope:
        rope = {"rope_type": rope.pop("type", "default"), **rope}
    return _llama(old, "num_key_value_heads", "head_dim", rope=rope)


PORTS = (
    _baichuan_port("Baichuan 7B", "transformers:LlamaForCausalLM", alibi=False),
    _baichuan_port("Baichuan 13B", ALIBI_CLASS, alibi=True),
    Port(
        family="Baichuan 13B (converted)",
        model_class=ALIBI_CLASS,
        recognises=lambda saved: saved.get("model_type") == ALIBI_TYPE,
    ),
    Port(
        family="InternLM",
        model_class="transformers:LlamaForCausalLM",
        recognises=lambda old: is_of(old, "internlm", "InternLMForCausalLM"),
        config=_internlm,
        modules=llama_modules,
        biased=("q_proj", "k_proj", "v_proj", "o_proj"),
    ),
    Port(
        family="InternLM2",
        model_class="transformers:LlamaForCausalLM",
        recognises=lambda old: is_of(old, "internlm2", "InternLM2ForCausalLM"),
        config=_internlm2,
        modules=_internlm2_modules,
    ),
    Port(
        family="XVERSE",
        model_class="transformers:LlamaForCausalLM",
        recognises=lambda old: is_of(old, "xverse", "XverseForCausalLM"),
        config=_xverse,
        modules=llama_modules,
    ),
)
