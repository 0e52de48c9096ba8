"""Phi's chat templates: each generation has its own marks."""

from llmtune.templates.info import register_template

register_template(
    "phi3",
    prefix=["<|system|>\n{{SYSTEM}}<|end|>\n"],
    prompt=["<|user|>\n{{QUERY}}<|end|>\n<|assistant|>\n"],
    chat_sep=["<|end|>\n"],
    suffix=["<|end|>"],
    stop_words=["<|endoftext|>"],
    source="chat_template of microsoft/Phi-3.5-mini-instruct's tokenizer_config.json",
)
register_template(
    "phi4",
    prefix=["<|im_start|>system<|im_sep|>{{SYSTEM}}<|im_end|>"],
    prompt=["<|im_start|>user<|im_sep|>{{QUERY}}<|im_end|><|im_start|>assistant<|im_sep|>"],
    chat_sep=["<|im_end|>"],
    suffix=["<|im_end|>"],
    stop_words=["<|endoftext|>"],
    source="chat_template of microsoft/phi-4's tokenizer_config.json, as llama.cpp's tests have it",
)
register_template(
    "phi4-mini",
    prefix=["<|system|>{{SYSTEM}}<|end|>"],
    prompt=["<|user|>{{QUERY}}<|end|><|assistant|>"],
    chat_sep=["<|end|>"],
    suffix=["<|end|>"],
    stop_words=["<|endoftext|>"],
    source="https://huggingface.co/microsoft/Phi-4-mini-instruct, section on the chat format",
)
