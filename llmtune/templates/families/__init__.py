"""The templates that ship with llmtune; importing this package registers them."""

from llmtune.templates.families import others, qwen, reference  # noqa: F401
