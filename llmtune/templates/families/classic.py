"""Templates of 2023 that belong to no single model: Vicuna's and Alpaca's."""

from llmtune.templates.families.reference import BOS, EOS
from llmtune.templates.info import TEMPLATE_MAPPING, register_template

register_template(
    "vicuna",
    prefix=[BOS, "{{SYSTEM}} "],
    prompt=["USER: {{QUERY}} ASSISTANT:"],
    chat_sep=[EOS],
    suffix=[EOS],
    answer_format=" {{ANSWER}}",
    default_system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    ),
    source="https://github.com/lm-sys/FastChat, fastchat/conversation.py, vicuna_v1.1 (ADD_COLON_TWO)",
)
register_template(
    "alpaca",
    prefix=[BOS, "{{SYSTEM}}\n\n"],
    prompt=["### Instruction:\n{{QUERY}}\n\n### Response:\n"],
    chat_sep=[EOS, "\n\n"],
    suffix=[EOS],
    default_system=(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    ),
    source="https://github.com/tatsu-lab/stanford_alpaca, train.py; the line break before the answer as in MedicalGPT",
)
TEMPLATE_MAPPING.alias("qwen", "qwen2")  # as other tools call ChatML with its first system prompt
TEMPLATE_MAPPING.alias("openbuddy-llama", "openbuddy")
