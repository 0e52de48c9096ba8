"""ChatGLM, InternLM, Baichuan, Yi, DeepSeek, and the smaller families of the reference."""

from __future__ import annotations

from typing import Any

from llmtune.models.families.base import BASE, BOS_BASE, PAGES, QKV, REFERENCE, REGISTRY
from llmtune.models.info import register_model

# ChatGLM2, ChatGLM3 and GLM-4

for _name, _template, _source in (
    ("chatglm2-6b", "chatglm2", REFERENCE),
    ("chatglm2-6b-32k", "chatglm2", REFERENCE),
    ("chatglm3-6b-base", "chatglm-generation", REGISTRY),
    ("chatglm3-6b", "chatglm3", REGISTRY),
    ("chatglm3-6b-32k", "chatglm3", REGISTRY),
    ("chatglm3-6b-128k", "chatglm3", REGISTRY),
):
    register_model(
        _name,
        model_id_or_path=f"ZhipuAI/{_name}",
        hf_model_id=f"THUDM/{_name}",
        template=_template,
        lora_target_modules=("query_key_value",),
        architecture="ChatGLMModel",
        source=_source,
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


# InternLM to InternLM3

for _key, _name, _template in (
    ("internlm-7b", "internlm-7b", BOS_BASE),
    ("internlm-7b-chat", "internlm-chat-7b-v1_1", "internlm"),
    ("internlm-7b-chat-8k", "internlm-chat-7b-8k", "internlm"),
    ("internlm-20b", "internlm-20b", BOS_BASE),
    ("internlm-20b-chat", "internlm-chat-20b", "internlm"),
):
    register_model(
        _key,
        model_id_or_path=f"Shanghai_AI_Laboratory/{_name}",
        hf_model_id=None if _name.endswith("8k") else f"internlm/{_name}",
        template=_template,
        lora_target_modules=QKV,
        architecture="InternLMForCausalLM",
        source=REFERENCE,
    )
for _size in ("1_8b", "7b", "20b"):
    for _key, _name, _template in (
        (f"internlm2-{_size}", f"internlm2-{_size}", BOS_BASE),
        (f"internlm2-{_size}-chat", f"internlm2-chat-{_size}", "internlm2"),
        (f"internlm2.5-{_size}", f"internlm2_5-{_size}", BOS_BASE),
        (f"internlm2.5-{_size}-chat", f"internlm2_5-{_size}-chat", "internlm2"),
    ):
        _dotted = _key.replace("1_8b", "1.8b")
        register_model(
            _dotted,
            aliases=tuple({_key, _key.replace("2.5", "2_5")} - {_dotted}),
            model_id_or_path=f"Shanghai_AI_Laboratory/{_name}",
            hf_model_id=f"internlm/{_name}",
            template=_template,
            lora_target_modules=("wqkv",),
            architecture="InternLM2ForCausalLM",
            source=REGISTRY,
        )
register_model(
    "internlm3-8b-instruct",
    model_id_or_path="Shanghai_AI_Laboratory/internlm3-8b-instruct",
    hf_model_id="internlm/internlm3-8b-instruct",
    template="internlm2",
    lora_target_modules=QKV,
    architecture="InternLM3ForCausalLM",
    requires=("transformers>=5.23",),
    source=REGISTRY,
    verified=False,
)


# Baichuan and Baichuan2

BAICHUAN: dict[str, Any] = {"lora_target_modules": ("W_pack",), "source": REFERENCE}

for _key, _name, _template, _architecture in (
    ("baichuan-7b", "baichuan-7B", BASE, "BaiChuanForCausalLM"),
    ("baichuan-13b", "Baichuan-13B-Base", BASE, "BaichuanForCausalLM"),
    ("baichuan-13b-chat", "Baichuan-13B-Chat", "baichuan", "BaichuanForCausalLM"),
    ("baichuan2-7b", "Baichuan2-7B-Base", BASE, "BaichuanForCausalLM"),
    ("baichuan2-7b-chat", "Baichuan2-7B-Chat", "baichuan", "BaichuanForCausalLM"),
    ("baichuan2-13b", "Baichuan2-13B-Base", BASE, "BaichuanForCausalLM"),
    ("baichuan2-13b-chat", "Baichuan2-13B-Chat", "baichuan", "BaichuanForCausalLM"),
):
    register_model(
        _key,
        model_id_or_path=f"baichuan-inc/{_name}",
        hf_model_id=f"baichuan-inc/{_name[0].upper()}{_name[1:]}",
        template=_template,
        architecture=_architecture,
        **BAICHUAN,
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
        **BAICHUAN,
    )


# Yi and Yi-1.5

for _name, _template in (
    ("Yi-6B", BASE),
    ("Yi-9B", BASE),
    ("Yi-34B", BASE),
    ("Yi-6B-Chat", "yi"),
    ("Yi-34B-Chat", "yi"),
    ("Yi-1.5-6B", BASE),
    ("Yi-1.5-9B", BASE),
    ("Yi-1.5-34B", BASE),
    ("Yi-1.5-6B-Chat", "yi1.5"),
    ("Yi-1.5-9B-Chat", "yi1.5"),
    ("Yi-1.5-34B-Chat", "yi1.5"),
):
    register_model(
        _name.lower(),
        aliases=(_name.lower().replace("1.5", "1_5"),) if "1.5" in _name else (),
        model_id_or_path=f"01ai/{_name}",
        hf_model_id=f"01-ai/{_name}",
        template=_template,
        lora_target_modules=QKV,
        architecture="LlamaForCausalLM",
        vocab_size=64000,
        source=PAGES,
        verified=False,
    )


# DeepSeek-V2-Lite and the models distilled from DeepSeek-R1

for _suffix, _template in (("", BOS_BASE), ("-Chat", "deepseek-v2")):
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
        source=PAGES,
        verified=False,
    )


# XVERSE, PolyLM and SeqGPT

for _size in ("7B", "13B"):
    for _suffix, _template in (("", BASE), ("-Chat", "xverse")):
        register_model(
            f"xverse-{_size}{_suffix}".lower(),
            model_id_or_path=f"xverse/XVERSE-{_size}{_suffix}",
            hf_model_id=f"xverse/XVERSE-{_size}{_suffix}",
            template=_template,
            lora_target_modules=QKV,
            architecture="XverseForCausalLM",
            source=REFERENCE,
        )
register_model(
    "polylm-13b",
    model_id_or_path="damo/nlp_polylm_13b_text_generation",
    hf_model_id="DAMO-NLP-MT/polylm-13b",
    lora_target_modules=("c_attn",),
    architecture="GPT2LMHeadModel",
    source=REFERENCE,
)
register_model(
    "seqgpt-560m",
    model_id_or_path="damo/nlp_seqgpt-560m",
    hf_model_id="DAMO-NLP/SeqGPT-560M",
    lora_target_modules=("query_key_value",),
    architecture="BloomForCausalLM",
    source=REFERENCE,
)


# Ziya2, and OpenBuddy's chat models on Llama, Llama 2 and Mistral

for _key, _name, _template in (("ziya2-13b", "Ziya2-13B-Base", BOS_BASE), ("ziya2-13b-chat", "Ziya2-13B-Chat", "ziya")):
    register_model(
        _key,
        model_id_or_path=f"Fengshenbang/{_name}",
        template=_template,
        lora_target_modules=QKV,
        architecture="LlamaForCausalLM",
        vocab_size=39424,
        source=REFERENCE,
    )
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
