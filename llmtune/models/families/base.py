"""Constants of the entries, and those that belong to no family: the embedded model, and any folder."""

from llmtune.models.info import AUTO, register_model

QKV = ("q_proj", "k_proj", "v_proj")
BASE = "default-generation"
BOS_BASE = "default-generation-bos"
"""Templates of base models, without and with a BOS token."""
PAGES = "the models' pages"
REFERENCE = "modelscope/swift, examples/pytorch/llm, October 2023"
REGISTRY = "the model registry of modelscope/ms-swift 3, swift/llm/model/model"

register_model(
    "llmtune-tiny",
    model_id_or_path="llmtune-tiny",
    template="chatml",
    lora_target_modules=QKV,
    get_folder="llmtune.models.tiny:tiny_folder",
    architecture="Qwen2ForCausalLM",
    source="llmtune/models/tiny.py",
)
register_model(
    AUTO,
    model_id_or_path="",
    template="auto",
    lora_target_modules=(),
    source="the config.json and the tokenizer of the folder that --model_id_or_path names",
)
