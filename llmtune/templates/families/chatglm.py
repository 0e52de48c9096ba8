"""The chat templates of ChatGLM3 and GLM-4.

ChatGLM3's tokenizer needs the control tokens of its configuration as single ids.
"""

from llmtune.templates.info import register_template

register_template(
    "chatglm3",
    prefix=["[gMASK]sop", "<|system|>\n {{SYSTEM}}", "<|user|>"],
    prompt=["\n {{QUERY}}<|assistant|>"],
    chat_sep=["<|user|>"],
    suffix=["<|user|>"],
    stop_words=["</s>", "<|observation|>"],
    answer_format="\n {{ANSWER}}",  # the model itself writes what stands behind <|assistant|>, a function's name or not
    tool_format="chatglm3",
    source="chat_template of ChatGLM3's tokenizer_config.json, as packed in @lenml/tokenizer-chatglm3 3.7.2",
)
register_template(
    "glm4",
    prefix=["[gMASK]<sop>", "<|system|>\n{{SYSTEM}}", "<|user|>"],
    prompt=["\n{{QUERY}}<|assistant|>"],
    chat_sep=["<|user|>"],
    suffix=["<|user|>"],
    stop_words=["<|endoftext|>", "<|observation|>"],
    answer_format="\n{{ANSWER}}",
    tool_format="glm4",
    source="chat_template of THUDM/glm-4-9b-chat's tokenizer_config.json, as llama.cpp's tests have it",
)
register_template(
    "glm4-generation",
    prefix=["[gMASK]<sop>"],
    prompt=["{{QUERY}}"],
    suffix=[["eos_token_id"]],
    source="the start of every text of GLM-4, https://huggingface.co/THUDM/glm-4-9b",
)
