"""Import registers."""

from llmtune.templates.tools.families import hermes, llama3, mistral, react

__all__ = ["hermes", "llama3", "mistral", "react"]
