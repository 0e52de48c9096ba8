"""ChatGLM3's chat template. Its tokenizer needs the control tokens of its configuration as single ids."""

from llmtune.templates.info import Place, register_template


def lead_with_newline(content: str, place: Place) -> str:
    """The model itself writes the line break after `<|assistant|>`."""
    return f"\n {content}"


register_template(
    "chatglm3",
    prefix=["[gMASK]sop", "<|system|>\n {{SYSTEM}}", "<|user|>"],
    prompt=["\n {{QUERY}}<|assistant|>"],
    chat_sep=["<|user|>"],
    suffix=["<|user|>"],
    stop_words=["</s>", "<|observation|>"],
    format_answer=lead_with_newline,
    source="chat_template of ChatGLM3's tokenizer_config.json, as packed in @lenml/tokenizer-chatglm3 3.7.2",
)
