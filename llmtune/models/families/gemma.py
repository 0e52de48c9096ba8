"""Gemma 2 and the text models of Gemma 3."""

from llmtune.models.families.common import QKV, REGISTRY
from llmtune.models.info import register_model

BASE = "default-generation-bos"

for _size in ("2b", "9b", "27b"):
    for _suffix, _template in (("", BASE), ("-it", "gemma")):
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
    for _suffix, _name, _template in (("", "-pt", BASE), ("-it", "-it", "gemma3")):
        _published = f"gemma-3-{_size}{'' if _size == '270m' and not _suffix else _name}"
        register_model(
            f"gemma3-{_size}{_suffix}",
            aliases=(f"gemma-3-{_size}{_suffix}",),
            model_id_or_path=f"LLM-Research/{_published}",
            hf_model_id=f"google/{_published}",
            template=_template,
            lora_target_modules=QKV,
            architecture=_architecture,
            source="the models' pages",
            verified=False,
        )
