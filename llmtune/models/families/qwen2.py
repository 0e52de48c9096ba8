"""Qwen1.5, Qwen2, Qwen2.5 with Coder and Math, QwQ: one architecture, each generation with its own system prompt."""

from llmtune.models.families.common import QKV, REGISTRY
from llmtune.models.info import register_model

GENERATIONS = (
    # name, suffix of the chat models, their template, sizes
    ("Qwen1.5", "-Chat", "qwen1.5", ("0.5B", "1.8B", "4B", "7B", "14B", "32B", "72B", "110B")),
    ("Qwen2", "-Instruct", "qwen2", ("0.5B", "1.5B", "7B", "72B")),
    ("Qwen2.5", "-Instruct", "qwen2.5", ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B")),
    ("Qwen2.5-Coder", "-Instruct", "qwen2.5", ("0.5B", "1.5B", "3B", "7B", "14B", "32B")),
    ("Qwen2.5-Math", "-Instruct", "qwen2.5-math", ("1.5B", "7B", "72B")),
)


def older_keys(key: str) -> tuple[str, ...]:
    """How ms-swift spells a key: `qwen2_5-7b-instruct`, `qwen1half-7b-chat`."""
    spellings = (key.replace("qwen1.5", "qwen1half"), key.replace("qwen2.5", "qwen2_5"))
    return tuple(spelling for spelling in spellings if spelling != key)


def _register(name: str, template: str, architecture: str = "Qwen2ForCausalLM") -> None:
    key = name.lower()
    register_model(
        key,
        aliases=older_keys(key),
        model_id_or_path=f"Qwen/{name}",
        hf_model_id=f"Qwen/{name}",
        template=template,
        lora_target_modules=QKV,
        architecture=architecture,
        source=REGISTRY,
        verified=not name.startswith("QwQ"),
    )


for _generation, _chat, _template, _sizes in GENERATIONS:
    for _size in _sizes:
        _register(f"{_generation}-{_size}", "default-generation")
        _register(f"{_generation}-{_size}{_chat}", _template)
_register("Qwen1.5-MoE-A2.7B", "default-generation", "Qwen2MoeForCausalLM")
_register("Qwen1.5-MoE-A2.7B-Chat", "qwen1.5", "Qwen2MoeForCausalLM")
_register("Qwen2-57B-A14B", "default-generation", "Qwen2MoeForCausalLM")
_register("Qwen2-57B-A14B-Instruct", "qwen2", "Qwen2MoeForCausalLM")
_register("QwQ-32B-Preview", "qwq-preview")
_register("QwQ-32B", "qwq")
