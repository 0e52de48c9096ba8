"""The templates that ship with llmtune, one file per family."""

from llmtune.templates.families import (  # noqa: F401
    chatglm,
    classic,
    deepseek,
    gemma,
    internlm2,
    llama3,
    microsoft,
    mistral,
    own,
    qwen,
    reference,
    vision,
)
