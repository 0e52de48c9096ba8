"""Piece of a rendered conversation: yielded by rendering and tool formats, encoded into tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Context: TypeAlias = "str | tuple[int | str, ...]"
"""Text with placeholders, or token ids and names of tokenizer attributes such as `eos_token_id`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Piece of a rendered conversation: text, or token ids and names of tokenizer attributes.

    `turn`: index of the assistant turn that it belongs to, where the model writes it; None otherwise. `is_image`: it
    represents an image, with the model's image token once. `weight`: loss weight of its trainable tokens.
    """

    content: Context
    trainable: bool = False
    from_data: bool = False
    turn: int | None = None
    is_image: bool = False
    weight: float = 1.0
