"""llmtune: fine-tune large language models from three registries."""

__version__ = "0.1.0"
