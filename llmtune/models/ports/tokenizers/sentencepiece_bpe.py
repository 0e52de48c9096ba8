"""SentencePiece files of the BPE kind: Llama, Baichuan, InternLM, ChatGLM and what was made from them.

Source: src/bpe_model.cc and src/normalizer.cc of google/sentencepiece v0.2.0 (what a piece of each kind does, the
order of the merges); LlamaTokenizer of transformers 4.33, of which those of the families are copies (each span
between special tokens is encoded as a text of its own, with a blank before it).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmtune.errors import ModelError
from llmtune.models.ports.tokenizers.json_file import merges_of
from llmtune.models.ports.tokenizers.model_file import Kind, Model, read_model
from llmtune.models.ports.tokenizers.port import LLAMA_TOKENS, Source, TokenizerPort

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.decoders import Decoder
    from tokenizers.normalizers import Normalizer


FILE = "tokenizer.model"
BLANK = "▁"

CLASSES = {"", "llamatokenizer", "internlmtokenizer", "internlm2tokenizer", "baichuantokenizer"}
"""Classes, in small letters, that do what LlamaTokenizer did; none where a folder holds the bare file."""


def from_model(file: Path) -> Tokenizer:
    """The tokenizer of a `.model` file, without a token before or after the text.

    Raises:
        ModelError: It uses something that the Rust library does otherwise.
    """
    from tokenizers import AddedToken, Tokenizer, models

    model = read_model(file)
    _refuse_what_differs(model, file)
    vocabulary = {piece.text: token for token, piece in enumerate(model.pieces)}
    if model.byte_fallback and "\0" in vocabulary:  # InternLM's file has it; the library leaves it to the byte's piece
        vocabulary["<null>"] = vocabulary.pop("\0")
    unknown = next((piece.text for piece in model.pieces if piece.kind == Kind.UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges_of(_ranks(model)),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
        )
    )
    tokenizer.normalizer = _normalizer(model)
    tokenizer.decoder = _decoder(model)
    tokenizer.add_special_tokens(
        [AddedToken(text.replace(BLANK, " "), special=True, normalized=False) for text in _special_pieces(model)]
    )
    return tokenizer


def is_sentencepiece(file: Path) -> bool:
    """Whether a `tokenizer.model` is of this format. Some are lists of ranks: text, which begins with no line break."""
    with file.open("rb") as opened:
        return opened.read(1) == b"\n"  # the tag of the first piece


def _ranks(model: Model) -> dict[str, int]:
    """The pieces that merges may make, the first to be made first.

    Of two with one score the leftmost is made first. The scores of all runs of blanks are equal in Llama's file; that
    the longer ones go first lets a run grow from its left end, as it does there.
    """
    normal = [piece for piece in model.pieces if piece.kind == Kind.NORMAL]
    normal.sort(key=lambda piece: (-piece.score, -len(piece.text)))
    return {piece.text: rank for rank, piece in enumerate(normal)}


def _special_pieces(model: Model) -> list[str]:
    """Control tokens, and symbols that never merge. One of a single character is no special token: it has no merges."""
    return [
        piece.text
        for piece in model.pieces
        if piece.kind in (Kind.CONTROL, Kind.UNKNOWN) or (piece.kind == Kind.USER_DEFINED and len(piece.text) > 1)
    ]


def _refuse_what_differs(model: Model, file: Path) -> None:
    plain = [piece.text for piece in model.pieces if piece.kind == Kind.USER_DEFINED and len(piece.text) > 1]
    plain = [text for text in plain if text[0] not in "<[" or text[-1] not in ">]"]
    differs = {
        "its kind (only BPE is known)": not model.is_bpe,
        "blanks at the ends of pieces": model.whitespace_as_suffix or not model.escape_whitespaces,
        "pieces that are split again": any(piece.kind == Kind.UNUSED for piece in model.pieces),
        # as a special token such a symbol would begin a text anew, with a blank before what follows
        f"symbols like {plain[:1]}": bool(plain) and model.add_dummy_prefix,
    }
    for what, is_so in differs.items():
        if is_so:
            raise ModelError(
                f"{file} cannot be carried over exactly: {what}. "
                "Its own code can read it, if you trust it: --trust_remote_code true."
            )


def _normalizer(model: Model) -> Normalizer:
    from tokenizers import Regex, normalizers

    steps: list[Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +| +\z|(?<= ) +"), ""))
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend(BLANK))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", BLANK)])


def _decoder(model: Model) -> Decoder:
    from tokenizers import decoders

    steps: list[Decoder] = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.add_dummy_prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    return decoders.Sequence(steps)


def _recognises(source: Source) -> bool:
    if source.has("tokenizer.json") or not source.has(FILE) or source.class_name.lower() not in CLASSES:
        return False
    # "legacy": false is another way to treat blanks, which transformers' LlamaTokenizer knows
    return source.config.get("legacy") is not False and is_sentencepiece(source.folder / FILE)


PORT = TokenizerPort(
    family="SentencePiece",
    recognises=_recognises,
    files=(FILE,),
    backend=lambda source: from_model(source.folder / FILE),
    defaults={**LLAMA_TOKENS, "add_bos_token": True, "add_eos_token": False},
)
