"""The models that ship with llmtune; importing this package registers them."""

from llmtune.models.families import base, chatglm, llama, qwen  # noqa: F401
