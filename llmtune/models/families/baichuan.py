"""Baichuan and Baichuan2."""

from typing import Any

from llmtune.models.families.common import REFERENCE
from llmtune.models.info import register_model

SHARED: dict[str, Any] = {"lora_target_modules": ("W_pack",), "source": REFERENCE}

for _key, _name, _template, _architecture in (
    ("baichuan-7b", "baichuan-7B", "default-generation", "BaiChuanForCausalLM"),
    ("baichuan-13b", "Baichuan-13B-Base", "default-generation", "BaichuanForCausalLM"),
    ("baichuan-13b-chat", "Baichuan-13B-Chat", "baichuan", "BaichuanForCausalLM"),
    ("baichuan2-7b", "Baichuan2-7B-Base", "default-generation", "BaichuanForCausalLM"),
    ("baichuan2-7b-chat", "Baichuan2-7B-Chat", "baichuan", "BaichuanForCausalLM"),
    ("baichuan2-13b", "Baichuan2-13B-Base", "default-generation", "BaichuanForCausalLM"),
    ("baichuan2-13b-chat", "Baichuan2-13B-Chat", "baichuan", "BaichuanForCausalLM"),
):
    register_model(
        _key,
        model_id_or_path=f"baichuan-inc/{_name}",
        hf_model_id=f"baichuan-inc/{_name[0].upper()}{_name[1:]}",
        template=_template,
        architecture=_architecture,
        **SHARED,
    )
for _size in ("7b", "13b"):
    register_model(
        f"baichuan2-{_size}-chat-int4",
        model_id_or_path=f"baichuan-inc/Baichuan2-{_size.upper()}-Chat-4bits",
        hf_model_id=f"baichuan-inc/Baichuan2-{_size.upper()}-Chat-4bits",
        template="baichuan",
        torch_dtype="bf16",
        architecture="BaichuanForCausalLM",
        requires=("bitsandbytes>=0.45",),
        **SHARED,
    )
