"""Llama, and the open models that came beside it: Mistral, Gemma, Phi, SmolLM, OLMo, gpt-oss and LLaVA."""

from __future__ import annotations

from typing import Any

from llmtune.models.families.base import BASE, BOS_BASE, PAGES, QKV, REFERENCE, REGISTRY
from llmtune.models.families.qwen import register_vision
from llmtune.models.info import register_model

# Llama 2 to Llama 3.3

LLAMA: dict[str, Any] = {"lora_target_modules": QKV, "architecture": "LlamaForCausalLM"}

for _size in ("7b", "13b", "70b"):
    for _suffix, _template in (("", BOS_BASE), ("-chat", "llama")):
        register_model(
            f"llama2-{_size}{_suffix}",
            model_id_or_path=f"modelscope/Llama-2-{_size}{_suffix}-ms",
            hf_model_id=f"meta-llama/Llama-2-{_size}{_suffix}-hf",
            template=_template,
            ignore_file_pattern=(r".+\.bin$",),
            vocab_size=32000,
            source=REFERENCE,
            **LLAMA,
        )

for _name, _template, _key in (
    *((f"Meta-Llama-3-{size}{suffix}", t, f"llama3-{size}{suffix}")
      for size in ("8B", "70B") for suffix, t in (("", BOS_BASE), ("-Instruct", "llama3"))),
    *((f"Meta-Llama-3.1-{size}{suffix}", t, f"llama3.1-{size}{suffix}")
      for size in ("8B", "70B", "405B") for suffix, t in (("", BOS_BASE), ("-Instruct", "llama3.1"))),
    *((f"Llama-3.2-{size}{suffix}", t, f"llama3.2-{size}{suffix}")
      for size in ("1B", "3B") for suffix, t in (("", BOS_BASE), ("-Instruct", "llama3.2"))),
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
        **LLAMA,
    )


# Mistral and Mixtral: their chat templates differ in blanks alone, by the generation of the tokenizer

CONSOLIDATED = (r"consolidated.+", r".+\.bin$")

VOCABULARIES = {"mistral-v3": 32768, "mistral-nemo": 131072, "mistral": 32000}

for _key, _id, _hf, _template, _source in (
    ("mistral-7b", "AI-ModelScope/Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.1", BOS_BASE, REFERENCE),
    ("mistral-7b-chat", "AI-ModelScope/Mistral-7B-Instruct-v0.1", "mistralai/Mistral-7B-Instruct-v0.1", "mistral",
     REFERENCE),
    ("mistral-7b-v0.2", "AI-ModelScope/Mistral-7B-v0.2-hf", "alpindale/Mistral-7B-v0.2-hf", BOS_BASE, REGISTRY),
    ("mistral-7b-instruct-v0.2", "AI-ModelScope/Mistral-7B-Instruct-v0.2", "mistralai/Mistral-7B-Instruct-v0.2",
     "mistral", REGISTRY),
    ("mistral-7b-instruct-v0.3", "LLM-Research/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-7B-Instruct-v0.3",
     "mistral-v3", REGISTRY),
    ("mistral-nemo-base-2407", "AI-ModelScope/Mistral-Nemo-Base-2407", "mistralai/Mistral-Nemo-Base-2407", BOS_BASE,
     REGISTRY),
    ("mistral-nemo-instruct-2407", "AI-ModelScope/Mistral-Nemo-Instruct-2407", "mistralai/Mistral-Nemo-Instruct-2407",
     "mistral-nemo", REGISTRY),
    ("mistral-small-instruct-2409", "AI-ModelScope/Mistral-Small-Instruct-2409",
     "mistralai/Mistral-Small-Instruct-2409", "mistral-v3", REGISTRY),
    ("mistral-small-24b-base-2501", "mistralai/Mistral-Small-24B-Base-2501", "mistralai/Mistral-Small-24B-Base-2501",
     BOS_BASE, REGISTRY),
    ("mistral-small-24b-instruct-2501", "mistralai/Mistral-Small-24B-Instruct-2501",
     "mistralai/Mistral-Small-24B-Instruct-2501", "auto", REGISTRY),
):  # fmt: skip
    register_model(
        _key,
        model_id_or_path=_id,
        hf_model_id=_hf,
        template=_template,
        lora_target_modules=QKV,
        architecture="MistralForCausalLM",
        vocab_size=VOCABULARIES.get(_template),
        ignore_file_pattern=CONSOLIDATED,
        source=_source,
    )
for _key, _name, _template in (
    ("mixtral-8x7b", "Mixtral-8x7B-v0.1", BOS_BASE),
    ("mixtral-8x7b-instruct", "Mixtral-8x7B-Instruct-v0.1", "mistral"),
):
    register_model(
        _key,
        model_id_or_path=f"AI-ModelScope/{_name}",
        hf_model_id=f"mistralai/{_name}",
        template=_template,
        lora_target_modules=QKV,
        architecture="MixtralForCausalLM",
        ignore_file_pattern=(*CONSOLIDATED, r".+\.pt$"),
        source=REGISTRY,
    )


# Gemma 2 and 3

for _size in ("2b", "9b", "27b"):
    for _suffix, _template in (("", BOS_BASE), ("-it", "gemma")):
        register_model(
            f"gemma2-{_size}{_suffix}",
            aliases=(f"gemma-2-{_size}{_suffix}",),
            model_id_or_path=f"LLM-Research/gemma-2-{_size}{_suffix}",
            hf_model_id=f"google/gemma-2-{_size}{_suffix}",
            template=_template,
            lora_target_modules=QKV,
            architecture="Gemma2ForCausalLM",
            source=REGISTRY,
        )
for _size, _architecture in (
    ("270m", "Gemma3ForCausalLM"),
    ("1b", "Gemma3ForCausalLM"),
    ("4b", "Gemma3ForConditionalGeneration"),
    ("12b", "Gemma3ForConditionalGeneration"),
    ("27b", "Gemma3ForConditionalGeneration"),
):
    for _suffix, _name, _template in (("", "-pt", BOS_BASE), ("-it", "-it", "gemma3")):
        _published = f"gemma-3-{_size}{'' if _size == '270m' and not _suffix else _name}"
        register_model(
            f"gemma3-{_size}{_suffix}",
            aliases=(f"gemma-3-{_size}{_suffix}",),
            model_id_or_path=f"LLM-Research/{_published}",
            hf_model_id=f"google/{_published}",
            template=_template,
            lora_target_modules=QKV,
            architecture=_architecture,
            source=PAGES,
            verified=False,
        )


# Phi-3, Phi-3.5 and Phi-4: their projections are fused

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


# SmolLM, OLMo 2, gpt-oss and MiniCPM3

for _key, _id, _hf, _template, _architecture in (
    *((f"smollm2-{size.lower()}{suffix.lower()}", f"HuggingFaceTB/SmolLM2-{size}{suffix}",
       f"HuggingFaceTB/SmolLM2-{size}{suffix}", template, "LlamaForCausalLM")
      for size in ("135M", "360M", "1.7B")
      for suffix, template in (("", BASE), ("-Instruct", "smollm2"))),
    ("smollm3-3b-base", "HuggingFaceTB/SmolLM3-3B-Base", "HuggingFaceTB/SmolLM3-3B-Base", BASE,
     "SmolLM3ForCausalLM"),
    ("smollm3-3b", "HuggingFaceTB/SmolLM3-3B", "HuggingFaceTB/SmolLM3-3B", "auto", "SmolLM3ForCausalLM"),
    *((f"olmo2-{size.lower()}{suffix.lower()}", f"allenai/OLMo-2-{number}-{size}{suffix}",
       f"allenai/OLMo-2-{number}-{size}{suffix}", template, "Olmo2ForCausalLM")
      for size, number in (("1B", "0425"), ("7B", "1124"), ("13B", "1124"))
      for suffix, template in (("", BASE), ("-Instruct", "olmo2"))),
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
        source=PAGES,
        verified=False,
    )


# LLaVA 1.5

for _size in ("7b", "13b"):
    register_vision(
        f"llava-1.5-{_size}-hf",
        f"llava-hf/llava-1.5-{_size}-hf",
        "llava",
        "LlavaForConditionalGeneration",
        (f"llava1_5-{_size}-instruct",),
    )
