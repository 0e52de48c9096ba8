"""Baichuan and Baichuan2: 7B on LlamaForCausalLM, 13B (ALiBi) on a small subclass of it.

Source: modeling_baichuan.py of Baichuan-7B, Baichuan-13B-Base, Baichuan2-7B-Base and Baichuan2-13B-Base.
"""

from __future__ import annotations

from llmtune.errors import ModelError
from llmtune.models.ports.port import LLAMA_MODULES, Config, Modules, Port, carry, consecutive, is_of

VOCABULARY_OF_FIRST, VOCABULARY_OF_SECOND = 64000, 125696
ALIBI_TYPE = "llama_alibi"
ALIBI_CLASS = "llmtune.models.ports.modeling_llama_alibi:LlamaAlibiForCausalLM"


def config(old: Config) -> Config:
    new = carry(
        old,
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
        "rms_norm_eps",
        max_position_embeddings="max_position_embeddings" if "max_position_embeddings" in old else "model_max_length",
    )
    rope = {"rope_type": "default", "rope_theta": float(old.get("rope_theta", 10000))}
    return new | {"model_type": ALIBI_TYPE if _has_alibi(old) else "llama", "rope_parameters": rope}


def modules(new: Config) -> Modules:
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


def warnings(old: Config) -> list[str]:
    if not _is_second(old):
        return []
    return [
        "Baichuan2 normalises the rows of its head at every step; here that is done once, at loading. Inference and "
        "LoRA are exact; full fine-tuning trains the head as a plain one."
    ]


def _port(family: str, model_class: str, *, alibi: bool) -> Port:
    return Port(
        family=family,
        model_class=model_class,
        recognises=lambda old: _is_baichuan(old) and _has_alibi(old) == alibi,
        config=config,
        modules=modules,
        normalised_head=_is_second,
        warnings=warnings,
    )


PORTS = (
    _port("Baichuan 7B", "transformers:LlamaForCausalLM", alibi=False),
    _port("Baichuan 13B", ALIBI_CLASS, alibi=True),
    Port(
        family="Baichuan 13B (converted)",
        model_class=ALIBI_CLASS,
        recognises=lambda saved: saved.get("model_type") == ALIBI_TYPE,
    ),
)
