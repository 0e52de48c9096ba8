"""Llama 2 to Llama 3.3, and the models of that architecture that the reference lists beside them."""

from typing import Any

from llmtune.models.families.common import QKV, REFERENCE, REGISTRY
from llmtune.models.info import register_model

SHARED: dict[str, Any] = {"lora_target_modules": QKV, "architecture": "LlamaForCausalLM"}
BASE = "default-generation-bos"

for _size in ("7b", "13b", "70b"):
    for _suffix, _template in (("", BASE), ("-chat", "llama")):
        register_model(
            f"llama2-{_size}{_suffix}",
            model_id_or_path=f"modelscope/Llama-2-{_size}{_suffix}-ms",
            hf_model_id=f"meta-llama/Llama-2-{_size}{_suffix}-hf",
            template=_template,
            ignore_file_pattern=(r".+\.bin$",),
            vocab_size=32000,
            source=REFERENCE,
            **SHARED,
        )

for _name, _template, _key in (
    *((f"Meta-Llama-3-{size}{suffix}", t, f"llama3-{size}{suffix}")
      for size in ("8B", "70B") for suffix, t in (("", BASE), ("-Instruct", "llama3"))),
    *((f"Meta-Llama-3.1-{size}{suffix}", t, f"llama3.1-{size}{suffix}")
      for size in ("8B", "70B", "405B") for suffix, t in (("", BASE), ("-Instruct", "llama3.1"))),
    *((f"Llama-3.2-{size}{suffix}", t, f"llama3.2-{size}{suffix}")
      for size in ("1B", "3B") for suffix, t in (("", BASE), ("-Instruct", "llama3.2"))),
    ("Llama-3.3-70B-Instruct", "llama3.1", "llama3.3-70B-Instruct"),
):  # fmt: skip
    register_model(
        _key.lower(),
        aliases=(_key.lower().replace("3.", "3_"),) if "3." in _key else (),
        model_id_or_path=f"LLM-Research/{_name}",
        hf_model_id=f"meta-llama/{_name}",
        template=_template,
        ignore_file_pattern=(r".+\.pth$", r"original/.+"),
        source=REGISTRY,
        vocab_size=128256,
        verified="3.3" not in _name,
        **SHARED,
    )

for _key, _id, _template in (
    ("ziya2-13b", "Fengshenbang/Ziya2-13B-Base", BASE),
    ("ziya2-13b-chat", "Fengshenbang/Ziya2-13B-Chat", "ziya"),
):
    register_model(_key, model_id_or_path=_id, template=_template, vocab_size=39424, source=REFERENCE, **SHARED)
