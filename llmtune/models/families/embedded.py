"""The model that ships as code, for machines that reach no hub."""

from llmtune.models.info import register_model

register_model(
    "llmtune-tiny",
    model_id_or_path="llmtune-tiny",
    template="chatml",
    lora_target_modules=("q_proj", "k_proj", "v_proj"),
    get_folder="llmtune.models.tiny:tiny_folder",
    architecture="Qwen2ForCausalLM",
    source="llmtune/models/tiny.py",
)
