"""The models that ship with llmtune, one file a family; importing this package registers them."""

from llmtune.models.families import (  # noqa: F401
    baichuan,
    chatglm,
    deepseek,
    embedded,
    gemma,
    internlm,
    llama,
    microsoft,
    mistral,
    openbuddy,
    others,
    qwen1,
    qwen2,
    qwen3,
    vision,
    xverse,
    yi,
)
