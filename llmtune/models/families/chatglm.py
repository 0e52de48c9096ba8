"""ChatGLM2, ChatGLM3 and GLM-4."""

from llmtune.models.families.common import QKV, REFERENCE, REGISTRY
from llmtune.models.info import register_model

FUSED = ("query_key_value",)

for _name in ("chatglm2-6b", "chatglm2-6b-32k"):
    register_model(
        _name,
        model_id_or_path=f"ZhipuAI/{_name}",
        hf_model_id=f"THUDM/{_name}",
        template="chatglm2",
        lora_target_modules=FUSED,
        architecture="ChatGLMModel",
        source=REFERENCE,
    )
for _name, _template in (
    ("chatglm3-6b-base", "chatglm-generation"),
    ("chatglm3-6b", "chatglm3"),
    ("chatglm3-6b-32k", "chatglm3"),
    ("chatglm3-6b-128k", "chatglm3"),
):
    register_model(
        _name,
        model_id_or_path=f"ZhipuAI/{_name}",
        hf_model_id=f"THUDM/{_name}",
        template=_template,
        lora_target_modules=FUSED,
        architecture="ChatGLMModel",
        source=REGISTRY,
    )
for _name, _template, _architecture in (
    ("glm-4-9b-hf", "glm4-generation", "GlmForCausalLM"),
    ("glm-4-9b-chat-hf", "glm4", "GlmForCausalLM"),
    ("glm-4-9b-chat-1m-hf", "glm4", "GlmForCausalLM"),
    ("GLM-4-9B-0414", "auto", "Glm4ForCausalLM"),
    ("GLM-4-32B-0414", "auto", "Glm4ForCausalLM"),
):
    register_model(
        _name.lower().removesuffix("-hf"),
        aliases=(_name.lower().removesuffix("-hf").replace("glm-4", "glm4"),),
        model_id_or_path=f"ZhipuAI/{_name}",
        hf_model_id=f"THUDM/{_name}",
        template=_template,
        lora_target_modules=QKV,
        architecture=_architecture,
        source="the repositories in transformers' layout that THUDM published beside its own",
        verified=False,
    )
