"""Vision models with transformers' own classes: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, LLaVA 1.5."""

from llmtune.models.families.common import QKV, REGISTRY
from llmtune.models.families.qwen2 import older_keys
from llmtune.models.info import register_model

EYES = ("visual", "vision_tower", "multi_modal_projector")
MOE = ("30B-A3B", "235B-A22B")


def _register(key: str, model_id: str, template: str, architecture: str, aliases: tuple[str, ...]) -> None:
    register_model(
        key,
        aliases=aliases,
        model_id_or_path=model_id,
        hf_model_id=model_id,
        template=template,
        lora_target_modules=QKV,
        get_function="llmtune.models.vision:load_image_text",
        architecture=architecture,
        images="native",
        skip_quantization=EYES,  # small, and what they lose the language model cannot get back
        source=REGISTRY,
    )


for _name, _architecture, _sizes in (
    ("Qwen2-VL", "Qwen2VLForConditionalGeneration", ("2B", "7B", "72B")),
    ("Qwen2.5-VL", "Qwen2_5_VLForConditionalGeneration", ("3B", "7B", "32B", "72B")),
    ("Qwen3-VL", "Qwen3VLForConditionalGeneration", ("2B", "4B", "8B", "32B", *MOE)),
):
    for _size in _sizes:
        _key = f"{_name}-{_size}-Instruct".lower()
        _class = "Qwen3VLMoeForConditionalGeneration" if _size in MOE else _architecture
        _register(_key, f"Qwen/{_name}-{_size}-Instruct", _name.lower(), _class, older_keys(_key))
for _size in ("7b", "13b"):
    _register(
        f"llava-1.5-{_size}-hf",
        f"llava-hf/llava-1.5-{_size}-hf",
        "llava",
        "LlavaForConditionalGeneration",
        (f"llava1_5-{_size}-instruct",),
    )
