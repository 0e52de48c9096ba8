"""A stretch of a rendered conversation: what rendering yields, tool formats write, and encoding turns into tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Context", "Piece"]

Context: TypeAlias = "str | tuple[int | str, ...]"
"""Text with placeholders, or token ids and names of tokenizer attributes such as `eos_token_id`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the rendered conversation: text, or token ids and names of tokenizer attributes.

    `turn`: the index of the answer that it belongs to, where the model writes it; None for all else. `is_image`: it
    stands for an image, with the model's image token once. `weight`: of its trainable tokens in the loss.
    """

    content: Context
    learned: bool = False
    from_data: bool = False
    turn: int | None = None
    is_image: bool = False
    weight: float = 1.0
