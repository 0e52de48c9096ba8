"""SentencePiece files of the BPE kind: Llama, Baichuan, InternLM, ChatGLM and what was made from them.

Source: src/bpe_model.cc and src/normalizer.cc of google/sentencepiece v0.2.0 (what a piece of each kind does, the
order of the merges); LlamaTokenizer of transformers 4.33, of which those of the families are copies (each span
between special tokens is encoded as a text of its own, with a blank before it).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from llmtune.errors import ModelError
from llmtune.models.ports.tokenizers.port import LLAMA_TOKENS, Source, TokenizerPort, merges_of

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


# A `.model` file is a protobuf message, of which a few fields are needed. It is not read by the sentencepiece package:
# nothing else needs that one, and two copies of its message types in one process refuse each other.
#
# Source: src/sentencepiece_model.proto of google/sentencepiece v0.2.0, for the numbers of the fields and the defaults.


class Kind(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class VocabularyPiece:
    text: str
    score: float
    kind: Kind


@dataclass(slots=True)
class Model:
    """Content of a `.model` file; the values are the format's defaults."""

    pieces: list[VocabularyPiece] = field(default_factory=list)
    is_bpe: bool = False
    byte_fallback: bool = False
    whitespace_as_suffix: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


def read_model(file: Path) -> Model:
    """Read a file.

    Raises:
        ValueError: It is not a SentencePiece model. A `tokenizer.model` can also be a list of ranks.
    """
    model = Model()
    try:
        for number, value in _fields(file.read_bytes()):
            if number == 1:
                model.pieces.append(_piece(_bytes(value)))
            elif number == 2:
                _read_trainer(model, dict(_fields(_bytes(value))))
            elif number == 3:
                _read_normalizer(model, dict(_fields(_bytes(value))))
    except (IndexError, TypeError, UnicodeDecodeError, struct.error) as err:
        raise ValueError(f"{file} is not a SentencePiece model, or it is cut off") from err
    if not model.pieces:
        raise ValueError(f"{file} is not a SentencePiece model: it has no pieces")
    return model


def _piece(message: bytes) -> VocabularyPiece:
    found = dict(_fields(message))
    (score,) = struct.unpack("<f", _bytes(found.get(2, bytes(4))))
    return VocabularyPiece(_bytes(found.get(1, b"")).decode("utf-8"), score, Kind(int(found.get(3, Kind.NORMAL))))


def _read_trainer(model: Model, found: dict[int, int | bytes]) -> None:
    model.is_bpe = found.get(3, 1) == 2
    model.whitespace_as_suffix = bool(found.get(24, 0))
    model.byte_fallback = bool(found.get(35, 0))


def _read_normalizer(model: Model, found: dict[int, int | bytes]) -> None:
    model.charsmap = _bytes(found.get(2, b""))
    model.add_dummy_prefix = bool(found.get(3, 1))
    model.remove_extra_whitespaces = bool(found.get(4, 1))
    model.escape_whitespaces = bool(found.get(5, 1))


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The numbers and values of a message, in its order; a field that is set twice comes twice."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise TypeError(f"wire type {wire}")
        if at + size > len(message):
            raise IndexError(at)
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"a number where bytes are expected: {value}")
    return value
