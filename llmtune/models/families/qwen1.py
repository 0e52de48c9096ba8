"""Qwen, the first generation: text models, their GPTQ forms, and the language part of Qwen-VL."""

from typing import Any

from llmtune.models.families.common import REFERENCE
from llmtune.models.info import register_model

FUSED = ("c_attn",)
SHARED: dict[str, Any] = {"lora_target_modules": FUSED, "architecture": "QWenLMHeadModel", "source": REFERENCE}
GPTQ: dict[str, Any] = {"torch_dtype": "fp16", "requires": ("gptqmodel>=5",)}

for _size in ("7B", "14B"):
    for _suffix, _template, _more in (
        ("", "default-generation", {}),
        ("-Chat", "chatml", {}),
        ("-Chat-Int4", "chatml", GPTQ),
        ("-Chat-Int8", "chatml", GPTQ),
    ):
        register_model(
            f"qwen-{_size}{_suffix}".lower(),
            model_id_or_path=f"qwen/Qwen-{_size}{_suffix}",
            hf_model_id=f"Qwen/Qwen-{_size}{_suffix}",
            template=_template,
            **SHARED,
            **_more,
        )

for _size in ("1_8B", "72B"):  # not in the reference: they came in November 2023
    for _suffix, _template in (("", "default-generation"), ("-Chat", "chatml")):
        register_model(
            f"qwen-{_size}{_suffix}".lower().replace("_", "."),
            aliases=(f"qwen-{_size}{_suffix}".lower(),) if "_" in _size else (),
            model_id_or_path=f"Qwen/Qwen-{_size}{_suffix}",
            hf_model_id=f"Qwen/Qwen-{_size}{_suffix}",
            template=_template,
            **SHARED,
        )

for _suffix, _template, _more in (
    ("", "default-generation", {}),
    ("-Chat", "chatml", {}),
    ("-Chat-Int4", "chatml", GPTQ),
):
    register_model(
        f"qwen-vl{_suffix}".lower(),
        model_id_or_path=f"qwen/Qwen-VL{_suffix}",
        hf_model_id=f"Qwen/Qwen-VL{_suffix}",
        template=_template,
        images="remote_code",
        **SHARED,
        **_more,
    )
