"""Tokenizers that passed the check of `llmtune.templates.fast_bpe` before, which takes 4 to 8 CPU-seconds.

Written by `python tests/templates/verify_bpe.py FOLDER`, with the libraries of requirements.txt.
"""

from __future__ import annotations

VERIFIED: dict[str, str] = {
    "dca76bf55a12a804d24c035230ca5f5d": "llama3_1",
    "786bb207d451770e7a46613dca12452e": "qwen1_5",
    "311660309cf783ea43afa11960597926": "qwen2_5",
    "b74bad9ede09f189fb303220895dbe87": "qwen3",
}
"""Key (see `fast_bpe.verified_key`): the family whose tokenizer.json it is."""
