"""Read a SentencePiece `.model` file: a protobuf message, of which a few fields are wanted.

Read here, and not by the package of the same name: that one is not needed for anything else, and two copies of its
message types in one process refuse each other.

Source: src/sentencepiece_model.proto of google/sentencepiece v0.2.0, for the numbers of the fields and the defaults.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path


class Kind(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    score: float
    kind: Kind


@dataclass(slots=True)
class Model:
    """Content of a `.model` file; the values are the format's defaults."""

    pieces: list[Piece] = field(default_factory=list)
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


def _piece(message: bytes) -> Piece:
    found = dict(_fields(message))
    (score,) = struct.unpack("<f", _bytes(found.get(2, bytes(4))))
    return Piece(_bytes(found.get(1, b"")).decode("utf-8"), score, Kind(int(found.get(3, Kind.NORMAL))))


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
