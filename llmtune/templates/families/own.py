"""`auto`: rendering by the tokenizer's own chat template, see `llmtune.templates.own`."""

from llmtune.templates.info import register_template

register_template(
    "auto",
    prefix=["{{SYSTEM}}"],
    prompt=["{{QUERY}}"],
    chat_sep=[],
    from_tokenizer=True,
    source="the chat_template of the tokenizer at hand",
)
