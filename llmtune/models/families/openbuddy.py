"""OpenBuddy's chat models on Llama, Llama 2 and Mistral."""

from llmtune.models.families.common import QKV, REFERENCE
from llmtune.models.info import register_model

for _key, _name, _architecture in (
    ("openbuddy-llama2-13b-chat", "openbuddy-llama2-13b-v8.1-fp16", "LlamaForCausalLM"),
    ("openbuddy-llama-65b-chat", "openbuddy-llama-65b-v8-bf16", "LlamaForCausalLM"),
    ("openbuddy-llama2-70b-chat", "openbuddy-llama2-70b-v10.1-bf16", "LlamaForCausalLM"),
    ("openbuddy-mistral-7b-chat", "openbuddy-mistral-7b-v13.1", "MistralForCausalLM"),
):
    register_model(
        _key,
        model_id_or_path=f"OpenBuddy/{_name}",
        hf_model_id=f"OpenBuddy/{_name}",
        template="openbuddy",
        lora_target_modules=QKV,
        architecture=_architecture,
        source=REFERENCE,
    )
