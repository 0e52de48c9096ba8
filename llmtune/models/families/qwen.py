"""Qwen: the first generation, Qwen1.5 to Qwen3, QwQ, and the vision models."""

from __future__ import annotations

from typing import Any

from llmtune.models.families.base import BASE, QKV, REFERENCE, REGISTRY
from llmtune.models.info import register_model

# The first generation: text models, their GPTQ forms, and the language part of Qwen-VL

QWEN1: dict[str, Any] = {"lora_target_modules": ("c_attn",), "architecture": "QWenLMHeadModel", "source": REFERENCE}
GPTQ: dict[str, Any] = {"torch_dtype": "fp16", "requires": ("gptqmodel>=5",)}

for _size in ("7B", "14B"):
    for _suffix, _template, _more in (
        ("", BASE, {}),
        ("-Chat", "chatml", {}),
        ("-Chat-Int4", "chatml", GPTQ),
        ("-Chat-Int8", "chatml", GPTQ),
    ):
        register_model(
            f"qwen-{_size}{_suffix}".lower(),
            model_id_or_path=f"qwen/Qwen-{_size}{_suffix}",
            hf_model_id=f"Qwen/Qwen-{_size}{_suffix}",
            template=_template,
            **QWEN1,
            **_more,
        )

for _size in ("1_8B", "72B"):  # not in the reference: they came in November 2023
    for _suffix, _template in (("", BASE), ("-Chat", "chatml")):
        register_model(
            f"qwen-{_size}{_suffix}".lower().replace("_", "."),
            aliases=(f"qwen-{_size}{_suffix}".lower(),) if "_" in _size else (),
            model_id_or_path=f"Qwen/Qwen-{_size}{_suffix}",
            hf_model_id=f"Qwen/Qwen-{_size}{_suffix}",
            template=_template,
            **QWEN1,
        )

for _suffix, _template, _more in (("", BASE, {}), ("-Chat", "chatml", {}), ("-Chat-Int4", "chatml", GPTQ)):
    register_model(
        f"qwen-vl{_suffix}".lower(),
        model_id_or_path=f"qwen/Qwen-VL{_suffix}",
        hf_model_id=f"Qwen/Qwen-VL{_suffix}",
        template=_template,
        images="remote_code",
        **QWEN1,
        **_more,
    )


# Qwen1.5, Qwen2, Qwen2.5 with Coder and Math, QwQ: one architecture, each generation with its own system prompt

GENERATIONS = (
    # name, suffix of the chat models, their template, sizes
    ("Qwen1.5", "-Chat", "qwen1.5", ("0.5B", "1.8B", "4B", "7B", "14B", "32B", "72B", "110B")),
    ("Qwen2", "-Instruct", "qwen2", ("0.5B", "1.5B", "7B", "72B")),
    ("Qwen2.5", "-Instruct", "qwen2.5", ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B")),
    ("Qwen2.5-Coder", "-Instruct", "qwen2.5", ("0.5B", "1.5B", "3B", "7B", "14B", "32B")),
    ("Qwen2.5-Math", "-Instruct", "qwen2.5-math", ("1.5B", "7B", "72B")),
)


def older_keys(key: str) -> tuple[str, ...]:
    """How ms-swift spells a key: `qwen2_5-7b-instruct`, `qwen1half-7b-chat`."""
    spellings = (key.replace("qwen1.5", "qwen1half"), key.replace("qwen2.5", "qwen2_5"))
    return tuple(spelling for spelling in spellings if spelling != key)


def _register(name: str, template: str, architecture: str = "Qwen2ForCausalLM", *, key: str = "") -> None:
    key = key or name.lower()
    register_model(
        key,
        aliases=older_keys(key),
        model_id_or_path=f"Qwen/{name}",
        hf_model_id=f"Qwen/{name}",
        template=template,
        lora_target_modules=QKV,
        architecture=architecture,
        source=REGISTRY,
        verified=not name.startswith("QwQ") and "2507" not in name,
    )


for _generation, _chat, _template, _sizes in GENERATIONS:
    for _size in _sizes:
        _register(f"{_generation}-{_size}", BASE)
        _register(f"{_generation}-{_size}{_chat}", _template)
_register("Qwen1.5-MoE-A2.7B", BASE, "Qwen2MoeForCausalLM")
_register("Qwen1.5-MoE-A2.7B-Chat", "qwen1.5", "Qwen2MoeForCausalLM")
_register("Qwen2-57B-A14B", BASE, "Qwen2MoeForCausalLM")
_register("Qwen2-57B-A14B-Instruct", "qwen2", "Qwen2MoeForCausalLM")
_register("QwQ-32B-Preview", "qwq-preview")
_register("QwQ-32B", "qwq")


# Qwen3, dense and mixture of experts; `-nothinking` trains and serves the same weights with thinking switched off

EXPERTS = ("30B-A3B", "235B-A22B")


def _register_qwen3(size: str, suffix: str, template: str, *, key: str = "") -> None:
    _register(f"Qwen3-{size}{suffix}", template, f"Qwen3{'Moe' * (size in EXPERTS)}ForCausalLM", key=key.lower())


for _size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B", *EXPERTS):
    _register_qwen3(_size, "", "qwen3")
    _register_qwen3(_size, "", "qwen3-nothinking", key=f"qwen3-{_size}-nothinking")
for _size in ("0.6B", "1.7B", "4B", "8B", "14B", "30B-A3B"):
    _register_qwen3(_size, "-Base", BASE)
for _size in ("4B", *EXPERTS):
    _register_qwen3(_size, "-Instruct-2507", "qwen3-instruct")
    _register_qwen3(_size, "-Thinking-2507", "qwen3-thinking")


# Vision models, on transformers' own classes

EYES = ("visual", "vision_tower", "multi_modal_projector")


def register_vision(key: str, model_id: str, template: str, architecture: str, aliases: tuple[str, ...]) -> None:
    register_model(
        key,
        aliases=aliases,
        model_id_or_path=model_id,
        hf_model_id=model_id,
        template=template,
        lora_target_modules=QKV,
        get_function="llmtune.models.vision:load_image_text",
        architecture=architecture,
        images="native",
        skip_quantization=EYES,  # small, and what they lose the language model cannot get back
        source=REGISTRY,
    )


for _name, _architecture, _sizes in (
    ("Qwen2-VL", "Qwen2VLForConditionalGeneration", ("2B", "7B", "72B")),
    ("Qwen2.5-VL", "Qwen2_5_VLForConditionalGeneration", ("3B", "7B", "32B", "72B")),
    ("Qwen3-VL", "Qwen3VLForConditionalGeneration", ("2B", "4B", "8B", "32B", *EXPERTS)),
):
    for _size in _sizes:
        _key = f"{_name}-{_size}-Instruct".lower()
        _class = "Qwen3VLMoeForConditionalGeneration" if _size in EXPERTS else _architecture
        register_vision(_key, f"Qwen/{_name}-{_size}-Instruct", _name.lower(), _class, older_keys(_key))
