"""Families of one or a few models: SmolLM, OLMo 2, gpt-oss, MiniCPM3, and the entry that takes any folder."""

from llmtune.models.families.common import QKV
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
