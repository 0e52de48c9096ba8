"""Map trainable characters to trainable tokens: by offsets, by bytes, or by tokenising up to each border."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Encoding

    from llmtune.templates.fast_bpe import FastBPE


@dataclass(frozen=True, slots=True)
class TextPart:
    """Part of a sequence that is tokenised as one: text, or ids.

    `trainable`: spans of the text in characters; `weights`: loss weights of these spans, () where all are 1. `plain`:
    control tokens' spellings are text. `continued`: it starts in the middle of a text, so a tokenizer that puts a
    blank before each text must not do so here.
    """

    text: str = ""
    ids: tuple[int, ...] | None = None
    trainable: tuple[tuple[int, int], ...] = ()
    plain: bool = False
    continued: bool = False
    weights: tuple[float, ...] = ()


@dataclass(slots=True)
class Tokens:
    ids: Sequence[int]
    trainable: list[tuple[int, int]] = field(default_factory=list)
    straddled: list[int] = field(default_factory=list)
    """Characters at which a trainable span begins or ends inside a token."""


def locate(part: TextPart, encoding: Encoding) -> Tokens:
    """Map trainable characters to trainable tokens.

    In one pass over the offsets: `encoding.char_to_token` searches all of them at each call.
    """
    ids = encoding.ids
    found = Tokens(ids)
    if not part.trainable:
        return found
    offsets = encoding.offsets
    ends = list(accumulate((end for _, end in offsets), max))

    def border(at: int) -> int:
        """Return the first token at or after a character."""
        if at >= len(part.text):
            return len(ids)
        token = bisect_right(ends, at)  # after a character that the normaliser dropped, the next
        if token < len(ids) and offsets[token][0] < at:
            found.straddled.append(at)
        return token

    found.trainable = [(border(start), border(end)) for start, end in part.trainable]
    return found


def locate_by_bytes(part: TextPart, fast: FastBPE) -> Tokens:
    """Map trainable characters to trainable tokens, by the ends of tokens in the text's bytes."""
    text, ids = part.text, fast.ids(part.text)
    found = Tokens(ids)
    ends = fast.ends(ids) if part.trainable else []
    known, byte = 0, 0

    def border(at: int) -> int:
        """Return the first token at or after a character; characters are given in ascending order."""
        nonlocal known, byte
        if at <= 0:
            return 0
        if at >= len(text):
            return len(ids)
        known, byte = at, byte + len(text[known:at].encode())
        token = bisect_left(ends, byte)
        if ends[token] == byte:
            return token + 1
        found.straddled.append(at)
        return token

    found.trainable = [(border(start), border(end)) for start, end in part.trainable]
    return found


def locate_by_prefixes(part: TextPart, ids_of: Callable[[str], list[int]]) -> Tokens:
    found = Tokens(ids_of(part.text))

    def border(at: int) -> int:
        before = ids_of(part.text[:at]) if at else []
        if list(found.ids[: len(before)]) != before:
            found.straddled.append(at)
        return len(before)

    found.trainable = [
        (border(start), border(end) if end < len(part.text) else len(found.ids)) for start, end in part.trainable
    ]
    return found
