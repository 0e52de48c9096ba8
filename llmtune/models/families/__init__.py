"""The models that ship with llmtune, one file a family; importing this package registers them."""

from llmtune.models.families import embedded, llama3, qwen2  # noqa: F401
