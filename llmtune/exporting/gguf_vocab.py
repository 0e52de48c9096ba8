"""Convert a fast tokenizer to GGUF: tokens and their kinds, merges, special ids, pre-tokenisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmtune.errors import ModelError
from llmtune.models.ports.tokenizers.sentencepiece_bpe import VocabularyPiece, read_model
from llmtune.utils.files import read_json

# llama.cpp's names of pre-tokenisers, by their regular expressions.
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS = {
    _LETTERS + r"\p{N}" + _REST: "qwen2",
    _LETTERS + r"\p{N}{1,3}" + _REST: "dbrx",
}
WHOLE_TOKENS = {"dbrx": "llama-bpe"}
"""Names of those that keep a word of the vocabulary whole, whatever its merges, by the usual one."""


def pre_tokenizer(folder: Path) -> str:
    """Return llama.cpp's name of a tokenizer's pre-tokeniser.

    Raises:
        ModelError: Its name is not known here; a wrong one would silently give other tokens.
    """
    tokenizer = read_json(folder / "tokenizer.json")
    if not tokenizer:
        raise ModelError(f"{folder} has no readable tokenizer.json, which GGUF is written from.")
    model = tokenizer.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ModelError("its tokenizer is a SentencePiece one, and there is no tokenizer.model with its scores")
    found = tokenizer.get("pre_tokenizer") or {}
    name = _name_of(found.get("pretokenizers") or [found])
    is_whole = bool(model.get("ignore_merges"))
    name = WHOLE_TOKENS.get(name, "") if is_whole else name
    if not name:
        raise ModelError("its pre-tokeniser has no name in llama.cpp that llmtune knows")
    return name


def _name_of(parts: list[dict[str, Any]]) -> str:
    kinds = [part.get("type") for part in parts]
    if kinds[-1:] == ["ByteLevel"] and parts[-1].get("use_regex", True):  # GPT-2's own expression
        if kinds == ["ByteLevel"]:
            return "gpt-2"
        return "starcoder" if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") else ""
    for part in parts:
        expression = part.get("pattern", {}).get("Regex") if part.get("type") == "Split" else None
        if expression in PRE_TOKENIZERS:
            return PRE_TOKENIZERS[expression]
    return ""


def check_vocabulary(folder: Path, model_file: Path | None) -> None:
    """Raise ModelError for a tokenizer that cannot be converted."""
    if model_file is None or not _is_sentencepiece(folder):
        pre_tokenizer(folder)
    else:
        _pieces(model_file)


def add_vocabulary(writer: Any, folder: Path, tokenizer: Any, size: int, model_file: Path | None = None) -> None:
    """Write a tokenizer into a GGUF file.

    Args:
        writer: A gguf.GGUFWriter. folder: With tokenizer.json. size: Rows of the embedding, padding included.
        model_file: The tokenizer.model that a SentencePiece tokenizer.json was converted from: it has the scores.
    """
    import gguf

    is_pieces = model_file is not None and _is_sentencepiece(folder)
    tokens, kinds = _tokens(tokenizer, size)
    if is_pieces:
        assert model_file is not None
        scores = _take_pieces(_pieces(model_file), tokens, kinds)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_add_space_prefix(_adds_blank(tokenizer))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer(folder))
        writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special = gguf.SpecialVocab(folder, load_merges=not is_pieces, n_vocab=size)
    for kind in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{kind}_token_id", None)
        if number is not None:
            special.special_token_ids[kind] = number
    ids = tokenizer("a")["input_ids"]
    special.add_special_token["bos"] = bool(ids) and ids[0] == tokenizer.bos_token_id
    special.chat_template = tokenizer.chat_template or None
    special.add_to_gguf(writer, quiet=True)


def _adds_blank(tokenizer: Any) -> bool:
    """Return whether a blank is prepended to a text; versions of one tokenizer differ in that."""
    first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])[0]
    return str(first).startswith("\u2581")


def _is_sentencepiece(folder: Path) -> bool:
    tokenizer = read_json(folder / "tokenizer.json")
    return not tokenizer or bool(tokenizer.get("model", {}).get("byte_fallback"))


def _pieces(model_file: Path) -> list[VocabularyPiece]:
    try:
        model = read_model(model_file)
    except ValueError as err:
        raise ModelError(str(err)) from err
    if not (model.is_bpe and model.byte_fallback):
        raise ModelError(f"its {model_file.name} is not BPE with byte fallback")
    return model.pieces


def _take_pieces(pieces: list[VocabularyPiece], tokens: list[str], kinds: list[int]) -> list[float]:
    """Return scores and kinds of the SentencePiece file; added tokens have neither."""
    scores = [-1000.0] * len(tokens)
    for number, piece in enumerate(pieces[: len(tokens)]):
        if tokens[number] != piece.text:
            raise ModelError(f"token {number} is {tokens[number]!r}, and {piece.text!r} in its tokenizer.model")
        scores[number] = piece.score
        kinds[number] = int(piece.kind)  # GGUF counts the kinds as SentencePiece does
    return scores


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
