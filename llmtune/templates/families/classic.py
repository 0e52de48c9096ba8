"""Templates of 2023 that belong to no single model: Vicuna's and Alpaca's."""

from __future__ import annotations

from llmtune.templates.families.reference import BOS, EOS, SOURCE
from llmtune.templates.info import DEFAULT_SYSTEM, TEMPLATE_MAPPING, register_template

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


# Families that write ChatML, or nearly, under their own system prompt


TURN = "<|im_start|>user\n{{QUERY}}<|im_end|>\n<|im_start|>assistant\n"
SYSTEM_BLOCK = "<|im_start|>system\n{{SYSTEM}}<|im_end|>\n"
END = "<|im_end|>"

register_template(
    "yi",
    prefix=[SYSTEM_BLOCK],
    prompt=[TURN],
    chat_sep=[END + "\n"],
    suffix=[END],
    stop_words=["<|endoftext|>"],
    source="https://huggingface.co/01-ai/Yi-6B-Chat, chat_template of its tokenizer_config.json",
)
register_template(
    "yi1.5",
    prefix=["{{SYSTEM}}"],
    prompt=[TURN],
    chat_sep=[END + "\n"],
    suffix=[END],
    stop_words=["<|endoftext|>"],
    source="https://huggingface.co/01-ai/Yi-1.5-6B-Chat, chat_template of its tokenizer_config.json",
)
register_template(
    "smollm2",
    prefix=[SYSTEM_BLOCK],
    prompt=[TURN],
    chat_sep=[END + "\n"],
    suffix=[END],
    default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    stop_words=["<|endoftext|>"],
    source="https://huggingface.co/HuggingFaceTB/SmolLM2-1.7B-Instruct, chat_template of its tokenizer_config.json",
)
register_template(
    "olmo2",
    prefix=["<|endoftext|>", "<|system|>\n{{SYSTEM}}\n"],
    prompt=["<|user|>\n{{QUERY}}\n<|assistant|>\n"],
    chat_sep=["<|endoftext|>\n"],
    suffix=["<|endoftext|>"],
    source="https://huggingface.co/allenai/OLMo-2-1124-7B-Instruct, section on the chat template",
)


# The reference's templates of October 2023, for checkpoints that were trained with them


register_template(
    "chatml-2023",
    prefix=["<|im_start|>system\n{{SYSTEM}}<|im_end|>\n"],
    prompt=["<|im_start|>user\n{{QUERY}}<|im_end|>\n<|im_start|>assistant\n"],
    chat_sep=["<|im_end|>\n"],
    suffix=["<|im_end|><|endoftext|>"],
    default_system=DEFAULT_SYSTEM,
    source=SOURCE,
)
register_template(
    "llama-2023",
    prefix=[BOS, "[INST] <<SYS>>\n{{SYSTEM}}\n<</SYS>>\n\n"],
    prompt=["{{QUERY}} [/INST] "],
    chat_sep=[" ", ["eos_token_id", "bos_token_id"], "[INST] "],
    suffix=[EOS],
    default_system=DEFAULT_SYSTEM,
    source=SOURCE,
)
register_template(
    "openbuddy-2023",
    prefix=["{{SYSTEM}}\n\n"],
    prompt=["User: {{QUERY}}\nAssistant: "],
    chat_sep=["\n"],
    suffix=[EOS],
    default_system=DEFAULT_SYSTEM,
    source=SOURCE,
)
register_template(
    "internlm-2023",
    prefix=["<s>"],
    prompt=["<|User|>:{{QUERY}}<eoh>\n<|Bot|>:"],
    chat_sep=["<eoa>\n"],
    suffix=["<eoa></s>"],
    source=SOURCE,
)
