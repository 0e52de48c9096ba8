"""Tokenizers of 2023 as transformers' fast ones: no code of theirs is run, and what is saved needs none of ours."""

from __future__ import annotations

from llmtune.models.ports.tokenizers.load import find_tokenizer_port, tokenizer_loader

__all__ = ["find_tokenizer_port", "tokenizer_loader"]
