"""The tool formats that ship with llmtune; importing this package registers them."""

from llmtune.templates.tools.families import chatglm, hermes, llama3, mistral, react

__all__ = ["chatglm", "hermes", "llama3", "mistral", "react"]
