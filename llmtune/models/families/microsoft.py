"""Phi-3, Phi-3.5 and Phi-4. Their projections are fused: qkv_proj."""

from llmtune.models.families.common import REGISTRY
from llmtune.models.info import register_model

for _key, _name, _template, _architecture in (
    ("phi3-mini-4k-instruct", "Phi-3-mini-4k-instruct", "phi3", "Phi3ForCausalLM"),
    ("phi3-mini-128k-instruct", "Phi-3-mini-128k-instruct", "phi3", "Phi3ForCausalLM"),
    ("phi3-medium-4k-instruct", "Phi-3-medium-4k-instruct", "phi3", "Phi3ForCausalLM"),
    ("phi3-medium-128k-instruct", "Phi-3-medium-128k-instruct", "phi3", "Phi3ForCausalLM"),
    ("phi3.5-mini-instruct", "Phi-3.5-mini-instruct", "phi3", "Phi3ForCausalLM"),
    ("phi4", "phi-4", "phi4", "Phi3ForCausalLM"),
    ("phi4-mini-instruct", "Phi-4-mini-instruct", "phi4-mini", "Phi3ForCausalLM"),
):
    register_model(
        _key,
        aliases=(_key.replace("phi", "phi-", 1),),
        model_id_or_path=f"LLM-Research/{_name}",
        hf_model_id=f"microsoft/{_name}",
        template=_template,
        lora_target_modules=("qkv_proj",),
        architecture=_architecture,
        source=REGISTRY,
    )
