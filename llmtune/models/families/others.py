"""Families of one or a few models: SmolLM, OLMo 2, gpt-oss, MiniCPM3, and the entry that takes any folder."""

from __future__ import annotations

from typing import Any

from llmtune.models.families.common import QKV, REFERENCE, REGISTRY
from llmtune.models.info import AUTO, register_model

for _key, _id, _hf, _template, _architecture in (
    *((f"smollm2-{size.lower()}{suffix.lower()}", f"HuggingFaceTB/SmolLM2-{size}{suffix}",
       f"HuggingFaceTB/SmolLM2-{size}{suffix}", template, "LlamaForCausalLM")
      for size in ("135M", "360M", "1.7B")
      for suffix, template in (("", "default-generation"), ("-Instruct", "smollm2"))),
    ("smollm3-3b-base", "HuggingFaceTB/SmolLM3-3B-Base", "HuggingFaceTB/SmolLM3-3B-Base", "default-generation",
     "SmolLM3ForCausalLM"),
    ("smollm3-3b", "HuggingFaceTB/SmolLM3-3B", "HuggingFaceTB/SmolLM3-3B", "auto", "SmolLM3ForCausalLM"),
    *((f"olmo2-{size.lower()}{suffix.lower()}", f"allenai/OLMo-2-{number}-{size}{suffix}",
       f"allenai/OLMo-2-{number}-{size}{suffix}", template, "Olmo2ForCausalLM")
      for size, number in (("1B", "0425"), ("7B", "1124"), ("13B", "1124"))
      for suffix, template in (("", "default-generation"), ("-Instruct", "olmo2"))),
    ("gpt-oss-20b", "openai-mirror/gpt-oss-20b", "openai/gpt-oss-20b", "auto", "GptOssForCausalLM"),
    ("gpt-oss-120b", "openai-mirror/gpt-oss-120b", "openai/gpt-oss-120b", "auto", "GptOssForCausalLM"),
    ("minicpm3-4b", "OpenBMB/MiniCPM3-4B", "openbmb/MiniCPM3-4B", "auto", "MiniCPM3ForCausalLM"),
):  # fmt: skip
    register_model(
        _key,
        model_id_or_path=_id,
        hf_model_id=_hf,
        template=_template,
        lora_target_modules=("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj") if "minicpm3" in _key else QKV,
        architecture=_architecture,
        vocab_size=49152 if "smollm2" in _key else None,
        source="the models' pages",
        verified=False,
    )

register_model(
    AUTO,
    model_id_or_path="",
    template="auto",
    lora_target_modules=(),
    source="the config.json and the tokenizer of the folder that --model_id_or_path names",
)


# Baichuan and Baichuan2


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


# XVERSE, PolyLM and SeqGPT: the reference's other models


for _size in ("7B", "13B"):
    for _suffix, _template in (("", "default-generation"), ("-Chat", "xverse")):
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


# Yi and Yi-1.5


for _name, _template in (
    ("Yi-6B", "default-generation"),
    ("Yi-9B", "default-generation"),
    ("Yi-34B", "default-generation"),
    ("Yi-6B-Chat", "yi"),
    ("Yi-34B-Chat", "yi"),
    ("Yi-1.5-6B", "default-generation"),
    ("Yi-1.5-9B", "default-generation"),
    ("Yi-1.5-34B", "default-generation"),
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
        source="the models' pages",
        verified=False,
    )


# OpenBuddy's chat models on Llama, Llama 2 and Mistral


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


# DeepSeek-V2-Lite and the models distilled from DeepSeek-R1


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


# Phi-3, Phi-3.5 and Phi-4. Their projections are fused: qkv_proj


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
