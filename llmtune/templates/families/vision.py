"""Chat templates of vision models: Qwen2-VL and its successors, LLaVA."""

from llmtune.templates.families.qwen import END, SYSTEM_BLOCK, TURN
from llmtune.templates.info import register_template

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"

for _key, _system, _model in (
    ("qwen2-vl", "You are a helpful assistant.", "Qwen2-VL-7B-Instruct"),
    ("qwen2.5-vl", "You are a helpful assistant.", "Qwen2.5-VL-7B-Instruct"),
    ("qwen3-vl", None, "Qwen3-VL-8B-Instruct"),
):
    register_template(
        _key,
        prefix=[SYSTEM_BLOCK],
        prompt=[TURN],
        chat_sep=[END + "\n"],
        suffix=[END],
        default_system=_system,
        stop_words=["<|endoftext|>"],
        tool_format="hermes" if _key == "qwen3-vl" else None,
        image=IMAGE,
        source=f"https://huggingface.co/Qwen/{_model}, chat_template of its tokenizer_config.json",
    )


register_template(
    "llava",
    prefix=["<s>"],
    prompt=["USER: {{QUERY}} ASSISTANT:"],
    chat_sep=[" "],
    suffix=["</s>"],
    answer_format=" {{ANSWER}}",  # it goes on in the line of `ASSISTANT:`
    image="<image>\n",
    source="https://huggingface.co/llava-hf/llava-1.5-7b-hf, chat_template.json",
)
