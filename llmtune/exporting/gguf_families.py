"""Families that are converted to GGUF: names and tensors, and what llama.cpp takes for granted of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.errors import ModelError
from llmtune.models.ports import read_config

Config = dict[str, Any]

GEMMA3_PERIOD = 6
"""Every sixth layer of Gemma 3 attends to all tokens; llama.cpp counts so itself."""


@dataclass(frozen=True)
class Family:
    """A family whose tensors map one to one.

    Attributes:
        arch: llama.cpp's name.
        permutes: Whether llama.cpp orders the rows of q and k differently.
        norm_offset: What is added to the weights of norms: Gemma stores their differences from 1.
        activation: The activation that llama.cpp computes; another one is refused.
        fixed: Values of config.json that llama.cpp takes for granted.
        refuses: Returns why a model cannot be converted; "" if it can.
        rope_kinds: RoPE scalings in addition to `ROPE_KINDS`.
        has_window: Whether llama.cpp has its sliding window.
        is_read_back: Whether transformers computes from GGUF files of it. Otherwise their tensors are compared.
    """

    arch: str
    permutes: bool = False
    norm_offset: float = 0.0
    activation: str = "silu"
    fixed: Mapping[str, Any] | None = None
    refuses: Callable[[Config], str] = lambda config: ""
    rope_kinds: tuple[str, ...] = ()
    has_window: bool = False
    is_read_back: bool = False


ROPE_KINDS = ("default", "linear", "yarn", "llama3")


def rope_of(config: Config, layers: str = "full_attention") -> dict[str, Any]:
    """Return the RoPE parameters of a config of transformers 5 or earlier.

    Args:
        layers: Kind of layers, where kinds differ.
    """
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    found = dict(found.get(layers) or {}) if "full_attention" in found else found
    found.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    found.setdefault("rope_type", found.pop("type", "default"))
    return found


def head_size(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def layers_of(config: Config) -> list[str]:
    """Return the kinds of attention, one a layer."""
    return list(config.get("layer_types") or ["full_attention"] * config["num_hidden_layers"])


def window_of(config: Config) -> int:
    """Return how many tokens the layers with a sliding window attend to; 0 where there is none."""
    if config.get("layer_types") and "sliding_attention" not in config["layer_types"]:
        return 0
    return int(config.get("sliding_window") or 0)


def _needs_scale(config: Config) -> str:
    """Gemma's scores are divided by the root of query_pre_attn_scalar, in llama.cpp by that of the head size."""
    if config.get("query_pre_attn_scalar", head_size(config)) != head_size(config):
        return "its attention is not scaled by the head size"
    return ""


def _gemma2(config: Config) -> str:
    pattern = ["sliding_attention" if number % 2 == 0 else "full_attention" for number in range(len(layers_of(config)))]
    if layers_of(config) != pattern:
        return "its layers with a sliding window are not every second one"
    if not (config.get("attn_logit_softcapping") and config.get("final_logit_softcapping")):
        return "it has no logit soft-capping"
    return _needs_scale(config)


def _gemma3(config: Config) -> str:
    count = len(layers_of(config))
    full = [number for number in range(count) if number % GEMMA3_PERIOD == GEMMA3_PERIOD - 1]
    if [number for number, kind in enumerate(layers_of(config)) if kind == "full_attention"] != full:
        return "its layers with full attention are not every sixth one"
    if rope_of(config, "sliding_attention")["rope_type"] != "default":
        return "the RoPE of its sliding windows is scaled"
    return _needs_scale(config)


def _moe(config: Config) -> str:
    dense = config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1
    return "some of its layers have no experts" if dense else ""


def _olmoe(config: Config) -> str:
    grouped = config.get("num_key_value_heads") not in (None, config["num_attention_heads"])
    return "its attention has fewer heads for keys than for queries" if grouped else ""


def _smollm3(config: Config) -> str:
    rotates = [int((number + 1) % 4 != 0) for number in range(config["num_hidden_layers"])]
    return "" if config.get("no_rope_layers") == rotates else "its layers without RoPE are not every fourth one"


_NO_BIAS = {"attention_bias": False}
_LLAMA = Family("llama", permutes=True, is_read_back=True)
_GEMMA = "gelu_pytorch_tanh"

FAMILIES = {
    "Qwen2ForCausalLM": Family("qwen2", is_read_back=True),
    "Qwen2MoeForCausalLM": Family("qwen2moe", fixed={"norm_topk_prob": False, "qkv_bias": True}, refuses=_moe),
    "Qwen3ForCausalLM": Family("qwen3", fixed=_NO_BIAS, is_read_back=True),
    "Qwen3MoeForCausalLM": Family("qwen3moe", fixed=_NO_BIAS | {"norm_topk_prob": True}, refuses=_moe),
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": Family("llama", permutes=True),
    "GemmaForCausalLM": Family("gemma", norm_offset=1, activation=_GEMMA, fixed=_NO_BIAS),
    "Gemma2ForCausalLM": Family(
        "gemma2", norm_offset=1, activation=_GEMMA, fixed=_NO_BIAS, refuses=_gemma2, has_window=True
    ),
    "Gemma3ForCausalLM": Family(
        "gemma3",
        norm_offset=1,
        activation=_GEMMA,
        fixed=_NO_BIAS | {"attn_logit_softcapping": None, "use_bidirectional_attention": False},
        refuses=_gemma3,
        has_window=True,
    ),
    "Phi3ForCausalLM": Family("phi3", rope_kinds=("longrope",)),
    "PhiForCausalLM": Family(
        "phi2", activation="gelu_new", fixed={"qk_layernorm": False, "tie_word_embeddings": False}
    ),
    "OlmoForCausalLM": Family("olmo", permutes=True, fixed=_NO_BIAS),
    "Olmo2ForCausalLM": Family("olmo2", fixed=_NO_BIAS),
    "OlmoeForCausalLM": Family("olmoe", fixed=_NO_BIAS | {"norm_topk_prob": False, "clip_qkv": None}, refuses=_olmoe),
    "GraniteForCausalLM": Family("granite", permutes=True),
    "Starcoder2ForCausalLM": Family("starcoder2", activation=_GEMMA, fixed={"use_bias": True}),
    "Glm4ForCausalLM": Family("glm4"),
    "GlmForCausalLM": Family("chatglm"),
    "SmolLM3ForCausalLM": Family("smollm3", permutes=True, fixed=_NO_BIAS | {"mlp_bias": False}, refuses=_smollm3),
    "SeedOssForCausalLM": Family(
        "seed_oss", fixed={"attention_bias": True, "attention_out_bias": False, "mlp_bias": False}
    ),
    "StableLmForCausalLM": Family("stablelm", fixed={"qk_layernorm": False}),
    "CohereForCausalLM": Family("command-r", fixed=_NO_BIAS | {"use_qk_norm": False}),
    "Exaone4ForCausalLM": Family("exaone4", fixed={"sliding_window": None}),
    "Ernie4_5ForCausalLM": Family("ernie4_5", fixed={"use_bias": False}),
    "HunYuanDenseV1ForCausalLM": Family("hunyuan-dense", fixed=_NO_BIAS),
    "ArceeForCausalLM": Family("arcee", permutes=True, activation="relu2", fixed=_NO_BIAS | {"mlp_bias": False}),
    "NemotronForCausalLM": Family("nemotron", norm_offset=1, activation="relu2"),
}


def family_of(folder: Path) -> tuple[Family, Config]:
    """Return the family of a folder and its whole configuration, defaults of its class included.

    Raises:
        ModelError: Another family, or a member that llama.cpp computes differently.
    """
    names = read_config(folder).get("architectures") or ["a class that config.json does not name"]
    family = FAMILIES.get(names[0])
    if family is None:
        raise ModelError(f"{names[0]} is none of the {len(FAMILIES)} architectures that llmtune converts")
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder).to_dict()
    kind = rope_of(config)["rope_type"]
    if kind not in ROPE_KINDS + family.rope_kinds:
        raise ModelError(f"its RoPE scaling is {kind!r}")
    activation = config.get("hidden_activation") or config.get("hidden_act")
    if activation != family.activation:
        raise ModelError(f"its activation is {activation!r}, that of {family.arch} in llama.cpp {family.activation!r}")
    for name, value in (family.fixed or {}).items():
        if (config.get(name) or None) != (value or None):
            raise ModelError(f"its {name} is {config.get(name)!r}, that of {family.arch} in llama.cpp {value!r}")
    reason = family.refuses(config)
    if reason:
        raise ModelError(reason)
    return family, config
