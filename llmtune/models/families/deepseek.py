"""DeepSeek-V2-Lite and the models distilled from DeepSeek-R1."""

from llmtune.models.families.common import QKV, REGISTRY
from llmtune.models.info import register_model

for _suffix, _template in (("", "default-generation-bos"), ("-Chat", "deepseek-v2")):
    register_model(
        f"deepseek-v2-lite{_suffix}".lower(),
        model_id_or_path=f"deepseek-ai/DeepSeek-V2-Lite{_suffix}",
        hf_model_id=f"deepseek-ai/DeepSeek-V2-Lite{_suffix}",
        template=_template,
        lora_target_modules=("q_proj", "kv_a_proj_with_mqa", "kv_b_proj"),
        architecture="DeepseekV2ForCausalLM",
        source=REGISTRY,
    )
for _base, _architecture in (
    ("Qwen-1.5B", "Qwen2ForCausalLM"),
    ("Qwen-7B", "Qwen2ForCausalLM"),
    ("Qwen-14B", "Qwen2ForCausalLM"),
    ("Qwen-32B", "Qwen2ForCausalLM"),
    ("Llama-8B", "LlamaForCausalLM"),
    ("Llama-70B", "LlamaForCausalLM"),
):
    register_model(
        f"deepseek-r1-distill-{_base}".lower(),
        model_id_or_path=f"deepseek-ai/DeepSeek-R1-Distill-{_base}",
        hf_model_id=f"deepseek-ai/DeepSeek-R1-Distill-{_base}",
        template="deepseek-r1",
        lora_target_modules=QKV,
        architecture=_architecture,
        vocab_size=128256 if "Llama" in _base else None,
        source="the models' pages",
        verified=False,
    )
