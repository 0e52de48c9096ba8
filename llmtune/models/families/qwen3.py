"""Qwen3, dense and mixture of experts; `-nothinking` trains and serves the same weights with thinking switched off."""

from llmtune.models.families.common import QKV, REGISTRY
from llmtune.models.info import register_model

DENSE = ("0.6B", "1.7B", "4B", "8B", "14B", "32B")
EXPERTS = ("30B-A3B", "235B-A22B")


def _register(key: str, name: str, template: str, architecture: str) -> None:
    register_model(
        key.lower(),
        model_id_or_path=f"Qwen/{name}",
        hf_model_id=f"Qwen/{name}",
        template=template,
        lora_target_modules=QKV,
        architecture=architecture,
        source=REGISTRY,
        verified="2507" not in name,
    )


for _size in (*DENSE, *EXPERTS):
    _class = "Qwen3MoeForCausalLM" if _size in EXPERTS else "Qwen3ForCausalLM"
    _register(f"Qwen3-{_size}", f"Qwen3-{_size}", "qwen3", _class)
    _register(f"Qwen3-{_size}-nothinking", f"Qwen3-{_size}", "qwen3-nothinking", _class)
for _size in ("0.6B", "1.7B", "4B", "8B", "14B", "30B-A3B"):
    _class = "Qwen3MoeForCausalLM" if _size in EXPERTS else "Qwen3ForCausalLM"
    _register(f"Qwen3-{_size}-Base", f"Qwen3-{_size}-Base", "default-generation", _class)
for _size in ("4B", *EXPERTS):
    _class = "Qwen3MoeForCausalLM" if _size in EXPERTS else "Qwen3ForCausalLM"
    _register(f"Qwen3-{_size}-Instruct-2507", f"Qwen3-{_size}-Instruct-2507", "qwen3-instruct", _class)
    _register(f"Qwen3-{_size}-Thinking-2507", f"Qwen3-{_size}-Thinking-2507", "qwen3-thinking", _class)
