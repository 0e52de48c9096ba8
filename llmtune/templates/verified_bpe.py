"""Tokenizers that passed the check of `llmtune.templates.fast_bpe` before, which takes 4 to 8 CPU-seconds.

Written by `python tests/templates/verify_bpe.py FOLDER`, with the libraries of requirements.txt.
"""

from __future__ import annotations

VERIFIED: dict[str, str] = {
    "b6205d4e5cb4b2adeabe4f50ab5b1cd1": "llama3_1",
    "68ca0b7d9367a07eee00f71bb6b1cf4c": "qwen1_5",
    "a25457798c46340eac6c91d018e9d55d": "qwen2_5",
    "4583c41e0d2e144975218577fd51fa94": "qwen3",
}
"""Key (see `fast_bpe.verified_key`): the family whose tokenizer.json it is."""
