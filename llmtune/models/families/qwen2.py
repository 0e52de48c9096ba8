"""Qwen2.5: base and instruct models."""

from llmtune.models.info import register_model

for _size in ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B"):
    for _suffix, _template in (("", "default-generation"), ("-Instruct", "qwen2.5")):
        _name = f"{_size}{_suffix}"
        register_model(
            f"qwen2.5-{_name.lower()}",
            aliases=(f"qwen2_5-{_name.lower()}",),
            model_id_or_path=f"Qwen/Qwen2.5-{_name}",
            hf_model_id=f"Qwen/Qwen2.5-{_name}",
            template=_template,
            lora_target_modules=("q_proj", "k_proj", "v_proj"),
            source=f"https://modelscope.cn/models/Qwen/Qwen2.5-{_name}",
        )
