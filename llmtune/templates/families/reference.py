"""Templates of 2023: those of the October 2023 reference, with its corrections until the end of that year, and others.

Corrected since: ChatML's system prompt is that of Qwen's own code; no blanks around `[/INST]` and no empty `<<SYS>>`
block; one stop token instead of two; an optional system prompt for families that have one; base models with and without
a BOS token; OpenBuddy's own system prompt.
"""

from __future__ import annotations

from typing import Any

from llmtune.templates.info import DEFAULT_SYSTEM, TEMPLATE_MAPPING, register_template

SOURCE = "modelscope/swift, examples/pytorch/llm, October to December 2023"
EOS = ["eos_token_id"]
BOS = ["bos_token_id"]
CHATML: dict[str, Any] = {
    "prefix": ["<|im_start|>system\n{{SYSTEM}}<|im_end|>\n"],
    "prompt": ["<|im_start|>user\n{{QUERY}}<|im_end|>\n<|im_start|>assistant\n"],
    "chat_sep": ["<|im_end|>\n"],
    "suffix": ["<|im_end|>"],
}

OPENBUDDY_SYSTEM = """Consider a conversation between User (a human) and Assistant (named Buddy).
Buddy is an INTP-T, a friendly, intelligent and multilingual AI assistant, by OpenBuddy team. \
GitHub: https://github.com/OpenBuddy/OpenBuddy
Buddy cannot access the Internet.
Buddy can fluently speak the user's language (e.g. English, Chinese).
Buddy can generate poems, stories, code, essays, songs, parodies, and more.
Buddy possesses vast knowledge about the world, history, and culture.
Buddy's responses are always safe, creative, high-quality, human-like, and interesting.
Buddy strictly refuses to discuss political, NSFW, or other unsafe topics.

User: Hi.
Assistant: Hi, I'm Buddy, your AI assistant. How can I help you today?"""


register_template(
    "default",
    prefix=["{{SYSTEM}}\n\n"],
    prompt=["### Human:\n", "{{QUERY}}\n\n", "### Assistant:\n"],
    chat_sep=["\n\n"],
    suffix=[EOS],
    default_system=DEFAULT_SYSTEM,
    source=SOURCE,
)
register_template("default-generation", prompt=["{{QUERY}}"], suffix=[EOS], source=SOURCE)
register_template("default-generation-bos", prefix=[BOS], prompt=["{{QUERY}}"], suffix=[EOS], source=SOURCE)
register_template(
    "chatml",
    **CHATML,
    default_system="You are a helpful assistant.",
    tool_format="react",
    source=SOURCE,
)
register_template(
    "baichuan",
    prefix=["{{SYSTEM}}"],
    prompt=[[195], "{{QUERY}}", [196]],
    chat_sep=[],
    suffix=[EOS],
    source=SOURCE,
)
register_template(
    "chatglm2",
    prefix=[[64790, 64792], "{{SYSTEM}}"],
    prompt=["[Round {{ROUND}}]\n\n问：{{QUERY}}\n\n答："],
    chat_sep=["\n\n"],
    suffix=[EOS],
    source=SOURCE,
)
register_template("chatglm-generation", prefix=[[64790, 64792]], prompt=["{{QUERY}}"], suffix=[EOS], source=SOURCE)
TEMPLATE_MAPPING.alias("chatglm2-generation", "chatglm-generation")
register_template(
    "llama",
    prefix=[BOS, "[INST] ", "<<SYS>>\n{{SYSTEM}}\n<</SYS>>\n\n"],
    prompt=["{{QUERY}} [/INST]"],
    chat_sep=[["eos_token_id", "bos_token_id"], "[INST] "],
    suffix=[EOS],
    default_system=DEFAULT_SYSTEM,
    strip=True,
    strip_system=False,
    answer_format=" {{ANSWER}} ",
    source="chat_completion in llama/generation.py of meta-llama/llama: each turn is one text between BOS and EOS",
)
register_template(
    "openbuddy",
    prefix=[BOS, "{{SYSTEM}}\n\n"],
    prompt=["User: {{QUERY}}\nAssistant:"],
    chat_sep=["\n"],
    suffix=[EOS],
    default_system=OPENBUDDY_SYSTEM,
    source=SOURCE,
)
register_template(
    "internlm",
    prefix=["<s>", "{{SYSTEM}}"],
    prompt=["<|User|>:{{QUERY}}<eoh>\n<|Bot|>:"],
    chat_sep=["<eoa>\n"],
    suffix=["<eoa>"],
    source=SOURCE,
)
register_template(
    "xverse",
    prefix=["{{SYSTEM}}"],
    prompt=["Human: {{QUERY}}\n\nAssistant: "],
    chat_sep=[EOS],
    suffix=[EOS],
    source=SOURCE,
)
register_template(
    "ziya",
    prefix=[BOS, "{{SYSTEM}}"],
    prompt=["<human>:{{QUERY}}\n<bot>:"],
    chat_sep=["\n"],
    suffix=[EOS],
    source=SOURCE,
)


# Vicuna's and Alpaca's, which belong to no single model

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


# The reference's templates of October 2023, for checkpoints that were trained with them

register_template(
    "chatml-2023",
    **CHATML | {"suffix": ["<|im_end|><|endoftext|>"]},
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
