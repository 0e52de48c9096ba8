"""Families that write ChatML, or nearly, under their own system prompt."""

from llmtune.templates.info import register_template

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
