"""A fast tokenizer's vocabulary as GGUF has it: tokens and their kinds, merges, special ids, how text is divided."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtune.errors import ModelError

__all__ = ["add_vocabulary", "pre_tokenizer"]

# What llama.cpp calls the way in which text is divided before merges apply, by the expression that divides.
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS = {
    _LETTERS + r"\p{N}" + _REST: "qwen2",
    _LETTERS + r"\p{N}{1,3}" + _REST: "llama-bpe",
}


def pre_tokenizer(folder: Path) -> str:
    """The name of a tokenizer's division of text.

    Raises:
        ModelError: One whose name is not known here: another name would give other tokens, and nobody would notice.
    """
    try:
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ModelError(f"{folder} has no tokenizer.json that can be read, and GGUF is written from it.") from err
    model = tokenizer.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ModelError("its tokenizer is not byte-level BPE but of SentencePiece's kind")
    for part in _parts(tokenizer.get("pre_tokenizer") or {}):
        expression = part.get("pattern", {}).get("Regex") if part.get("type") == "Split" else None
        if expression in PRE_TOKENIZERS:
            return PRE_TOKENIZERS[expression]
    raise ModelError("its tokenizer divides text in a way that llmtune knows no name of llama.cpp's for")


def _parts(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(found.get("pretokenizers", [])) or [found]


def add_vocabulary(writer: Any, folder: Path, tokenizer: Any, size: int) -> None:
    """Write a tokenizer into a GGUF file.

    Args:
        writer: A gguf.GGUFWriter. folder: With tokenizer.json. size: Rows of the embedding, padding included.
    """
    import gguf

    tokens, kinds = _tokens(tokenizer, size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(folder))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=size)
    for kind in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{kind}_token_id", None)
        if number is not None:
            special.special_token_ids[kind] = number
    special.add_special_token.setdefault("bos", False)
    special.chat_template = tokenizer.chat_template or None
    special.add_to_gguf(writer, quiet=True)


def _tokens(tokenizer: Any, size: int) -> tuple[list[str], list[int]]:
    from gguf import TokenType

    by_id = {number: text for text, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, kinds = [], []
    for number in range(size):
        if number not in by_id:
            tokens.append(f"[PAD{number}]")
            kinds.append(TokenType.UNUSED)
        else:
            tokens.append(by_id[number])
            entry = added.get(number)
            known = TokenType.NORMAL if entry is None else TokenType.USER_DEFINED
            kinds.append(TokenType.CONTROL if entry is not None and entry.special else known)
    return tokens, kinds
