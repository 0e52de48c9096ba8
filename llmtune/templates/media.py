"""Media of rows: the contract of what reads them for a model, and their places in rendered text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from llmtune.errors import DataError, TemplateError
from llmtune.templates.pieces import Piece
from llmtune.types import Media, MediaKind

if TYPE_CHECKING:
    from torch import Tensor


class MediaError(DataError):
    """File that is missing or cannot be read; the message begins with its name."""


class MediaToken(NamedTuple):
    """Token at each position of a medium."""

    text: str
    id: int


Sizes: TypeAlias = "dict[Media, int | MediaError]"
"""Positions of each medium, or its error."""


class MediaReader(Protocol):
    """Reads the media of rows for one model: see `llmtune.models.vision.ImageReader`.

    Attributes:
        tokens: The token of each kind that the model takes.
    """

    tokens: Mapping[MediaKind, MediaToken]

    def limit_pixels(self, max_pixels: int) -> None:
        """Lower the model's own limit on the size of images. Raises UsageError where it cannot."""

    def measure(self, media: Iterable[Media]) -> Sizes:
        """Return the number of positions of each, or its error; each file is checked to be readable as a whole."""

    def inputs(self, media: Sequence[Media], input_ids: Tensor) -> dict[str, Tensor]:
        """Return the model's inputs besides `input_ids` [B, T], whose media are given in order; empty without any."""

    def state(self, media: Iterable[Media]) -> Any:
        """Return what the positions depend on: files and settings. Its `repr` is part of the key of encoded rows."""

    def save(self, folder: Path) -> None:
        """Write the processor's files into a checkpoint folder, for other programs."""


def fill_media(
    pieces: Sequence[Piece],
    media: Sequence[Media],
    sizes: Sizes,
    texts: Mapping[MediaKind, str],
    *,
    may_spell: Collection[str],
) -> list[Piece]:
    """Write the token of a medium once per position.

    Args:
        media: Those of the pieces, in order.
        texts: The token's text, by kind.
        may_spell: Tokens whose spelling in the data is encoded as text.

    Raises:
        TemplateError: The data contains another token's spelling. MediaError: An unreadable file.
    """
    for text in texts.values():
        if text not in may_spell and any(piece.from_data and text in piece.content for piece in pieces):
            raise TemplateError(f"its text contains {text}, the image token; set --special_tokens_in_text text")
    ones = iter(media)
    return [piece if piece.media is None else _filled(piece, sizes[next(ones)], texts[piece.media]) for piece in pieces]


def _filled(piece: Piece, size: int | MediaError, token: str) -> Piece:
    if isinstance(size, MediaError):
        raise size
    assert isinstance(piece.content, str)
    return replace(piece, content=piece.content.replace(token, token * size))
