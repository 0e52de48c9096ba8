"""Tokenizers that passed the check of `llmtune.templates.fast_bpe` before, which takes 4 to 8 CPU-seconds.

Written by `python tests/templates/verify_bpe.py FOLDER`, with the libraries of requirements.txt.
"""

from __future__ import annotations

VERIFIED: dict[str, str] = {
    "2669ee66b3245ba3617bf1edf9d369ac": "llama3_1",
    "e08d891f2ab1422408c2ea3ae73457fd": "qwen1_5",
    "05dc528ae5df51f26ebaee622244f86d": "qwen2_5",
    "19abc5cbd664291ed5b2b4996948d71a": "qwen3",
}
"""Key (see `fast_bpe.verified_key`): the family whose tokenizer.json it is."""
