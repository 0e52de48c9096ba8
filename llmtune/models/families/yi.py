"""Yi and Yi-1.5."""

from llmtune.models.families.common import QKV
from llmtune.models.info import register_model

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
