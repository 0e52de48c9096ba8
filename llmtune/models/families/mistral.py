"""Mistral and Mixtral. Their chat templates differ in blanks alone, by the generation of the tokenizer."""

from llmtune.models.families.common import QKV, REFERENCE, REGISTRY
from llmtune.models.info import register_model

BASE = "default-generation-bos"
CONSOLIDATED = (r"consolidated.+", r".+\.bin$")

VOCABULARIES = {"mistral-v3": 32768, "mistral-nemo": 131072, "mistral": 32000}

for _key, _id, _hf, _template, _source in (
    ("mistral-7b", "AI-ModelScope/Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.1", BASE, REFERENCE),
    ("mistral-7b-chat", "AI-ModelScope/Mistral-7B-Instruct-v0.1", "mistralai/Mistral-7B-Instruct-v0.1", "mistral",
     REFERENCE),
    ("mistral-7b-v0.2", "AI-ModelScope/Mistral-7B-v0.2-hf", "alpindale/Mistral-7B-v0.2-hf", BASE, REGISTRY),
    ("mistral-7b-instruct-v0.2", "AI-ModelScope/Mistral-7B-Instruct-v0.2", "mistralai/Mistral-7B-Instruct-v0.2",
     "mistral", REGISTRY),
    ("mistral-7b-instruct-v0.3", "LLM-Research/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-7B-Instruct-v0.3",
     "mistral-v3", REGISTRY),
    ("mistral-nemo-base-2407", "AI-ModelScope/Mistral-Nemo-Base-2407", "mistralai/Mistral-Nemo-Base-2407", BASE,
     REGISTRY),
    ("mistral-nemo-instruct-2407", "AI-ModelScope/Mistral-Nemo-Instruct-2407", "mistralai/Mistral-Nemo-Instruct-2407",
     "mistral-nemo", REGISTRY),
    ("mistral-small-instruct-2409", "AI-ModelScope/Mistral-Small-Instruct-2409",
     "mistralai/Mistral-Small-Instruct-2409", "mistral-v3", REGISTRY),
    ("mistral-small-24b-base-2501", "mistralai/Mistral-Small-24B-Base-2501", "mistralai/Mistral-Small-24B-Base-2501",
     BASE, REGISTRY),
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
    ("mixtral-8x7b", "Mixtral-8x7B-v0.1", BASE),
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
