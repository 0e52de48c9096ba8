"""The models that ship with llmtune, one file a family; importing this package registers them."""

from llmtune.models.families import (  # noqa: F401
    chatglm,
    embedded,
    gemma,
    internlm,
    llama,
    mistral,
    others,
    qwen1,
    qwen2,
    qwen3,
    vision,
)
