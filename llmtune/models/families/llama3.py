"""Llama 3: base and instruct models."""

from llmtune.models.info import register_model

for _size in ("8B", "70B"):
    for _suffix, _template in (("", "default-generation-bos"), ("-Instruct", "llama3")):
        _name = f"Meta-Llama-3-{_size}{_suffix}"
        register_model(
            f"llama3-{_size}{_suffix}".lower(),
            model_id_or_path=f"LLM-Research/{_name}",
            hf_model_id=f"meta-llama/{_name}",
            template=_template,
            lora_target_modules=("q_proj", "k_proj", "v_proj"),
            ignore_file_pattern=(r".+\.pth$", r"original/.+"),
            source=f"https://modelscope.cn/models/LLM-Research/{_name}",
        )
