"""Piece of a rendered conversation: yielded by rendering and tool formats, encoded into tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from llmtune.types import MediaKind

Context: TypeAlias = "str | tuple[int | str, ...]"
"""Text with placeholders, or token ids and names of tokenizer attributes such as `eos_token_id`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Piece of a rendered conversation: text, or token ids and names of tokenizer attributes.

    `turn`: index of the assistant turn that it belongs to, where the model writes it; None otherwise. `media`: it
    represents a medium of that kind, with the model's token for it once. `weight`: loss weight of its trainable tokens.
    """

    content: Context
    trainable: bool = False
    from_data: bool = False
    turn: int | None = None
    media: MediaKind | None = None
    weight: float = 1.0
