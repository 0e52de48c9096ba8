"""InternLM, InternLM2, InternLM2.5 and InternLM3."""

from llmtune.models.families.common import QKV, REFERENCE, REGISTRY
from llmtune.models.info import register_model

BASE = "default-generation-bos"

for _key, _name, _template in (
    ("internlm-7b", "internlm-7b", BASE),
    ("internlm-7b-chat", "internlm-chat-7b-v1_1", "internlm"),
    ("internlm-7b-chat-8k", "internlm-chat-7b-8k", "internlm"),
    ("internlm-20b", "internlm-20b", BASE),
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
        (f"internlm2-{_size}", f"internlm2-{_size}", BASE),
        (f"internlm2-{_size}-chat", f"internlm2-chat-{_size}", "internlm2"),
        (f"internlm2.5-{_size}", f"internlm2_5-{_size}", BASE),
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
    source=REGISTRY,
    verified=False,
)
