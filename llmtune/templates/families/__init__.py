"""The templates that ship with llmtune, one file a family."""

from llmtune.templates.families import chatglm, internlm2, llama3, qwen, reference  # noqa: F401
