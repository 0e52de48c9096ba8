"""Images of rows: the number of tokens of each, and the model's inputs for it.

The tokenizer of a vision model carries an `ImageReader`, attached by `llmtune.models.vision` and returned by
`images_of`, so that everything with the tokenizer (templates, collators, engines, checkpoints) can read images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from llmtune.data.image_marks import is_address
from llmtune.errors import DataError, TemplateError, UsageError
from llmtune.templates.pieces import Piece
from llmtune.utils.logging import get_logger
from llmtune.utils.system import need

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


ATTRIBUTE = "llmtune_images"
NUM_THREADS = 8


class ImageError(DataError):
    """Image that is missing or cannot be read; the message begins with its name."""


Sizes: TypeAlias = "dict[str, int | ImageError]"
"""Tokens of each image, or its error."""


def images_of(tokenizer: Any) -> ImageReader | None:
    """Return the ImageReader of a tokenizer; None for a text model."""
    return getattr(tokenizer, ATTRIBUTE, None)


def limit_pixels(tokenizer: Any, max_pixels: int | None) -> None:
    """Apply `--max_pixels`, or warn that it has no effect."""
    reader = images_of(tokenizer)
    if max_pixels is not None and reader is None:
        get_logger().warning("--max_pixels has no effect: the model takes text only.")
    elif max_pixels is not None and reader is not None:
        reader.limit_pixels(max_pixels)


def carry_images(tokenizer: Any, reader: ImageReader) -> None:
    # upstream: transformers 5.23.0 no issue: a tokenizer has no place for the image processor of its model
    setattr(tokenizer, ATTRIBUTE, reader)


class ImageReader:
    """Image processor of one model.

    Args:
        processor: The model's image processor in transformers.
        token_id: Id of one image position.
        token: Its text.
        num_tokens: (height, width) in pixels -> positions of the image.
        save: Copies the processor's files of the model folder into another one; True: the processor was changed.
    """

    def __init__(
        self,
        processor: Any,
        *,
        token_id: int,
        token: str,
        num_tokens: Callable[[int, int], int],
        save: Callable[[Path, bool], None],
    ) -> None:
        self.processor = processor
        self.token_id = token_id
        self.token = token
        self._num_tokens = num_tokens
        self._save = save
        self._is_limited = False

    def limit_pixels(self, max_pixels: int) -> None:
        """Lower the model's own limit on the size of images.

        Raises:
            UsageError: The model resizes all images to one size, or to more pixels than that.
        """
        size = self.processor.size
        least, most = size.get("shortest_edge"), size.get("longest_edge")
        if getattr(self.processor, "merge_size", None) is None or least is None or most is None:
            raise UsageError("--max_pixels: this model resizes all images to one size. Remove the flag.")
        if max_pixels < least:
            raise UsageError(f"--max_pixels {max_pixels:,}: this model needs {least:,} pixels or more.")
        self.processor.size = type(size)(shortest_edge=least, longest_edge=min(max_pixels, most))
        self._is_limited = True

    def save(self, folder: Path) -> None:
        """Write the image processor's files into a checkpoint folder, for other programs."""
        self._save(folder, self._is_limited)

    def measure(self, paths: Iterable[str]) -> Sizes:
        """Return the tokens of each image, or its error.

        Each is decoded once, at the lowest resolution its format has, to find truncated files now and not in the
        middle of a run; the pixels are not kept.
        """
        unique = list(dict.fromkeys(paths))
        if len(unique) < NUM_THREADS:
            return dict(zip(unique, map(self._measured, unique), strict=True))
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            return dict(zip(unique, pool.map(self._measured, unique), strict=True))

    def _measured(self, path: str) -> int | ImageError:
        try:
            height, width = _checked_size(path)
            return self._num_tokens(height, width)
        except ImageError as err:
            return err
        except ValueError as err:  # an aspect ratio that no model has patches for
            return ImageError(f"{path}: {err}")

    def inputs(self, paths: Sequence[str], input_ids: Tensor) -> dict[str, Tensor]:
        """Return the model's inputs besides the ids: pixels, and their positions in `input_ids` [B, T].

        Empty without images.

        Raises:
            ImageError: An image has gone since its row was encoded.
        """
        if not paths:
            return {}
        found = dict(self.processor(images=[open_image(path) for path in paths], return_tensors="pt"))
        if "image_grid_thw" in found:  # models with positions in three dimensions receive token types
            found["mm_token_type_ids"] = (input_ids == self.token_id).to(input_ids.dtype)
        return found

    def state(self, paths: Iterable[str]) -> list[tuple[str, int, int]]:
        """Return sizes and times of the files (0 where there is none), which encoded rows depend on."""
        return [(path, *_stat(path)) for path in sorted(set(paths))]


def fill_images(
    pieces: Sequence[Piece], images: Sequence[str], sizes: Sizes, token: str, *, may_spell: bool
) -> list[Piece]:
    """Write the image token once per position of each image.

    Args:
        images: The images of the pieces, in order.
        may_spell: Whether the token's spelling in the data is encoded as text.

    Raises:
        TemplateError: The data contains the token's spelling, and `may_spell` is false. ImageError: An unreadable
            image.
    """
    if not may_spell and any(piece.from_data and token in piece.content for piece in pieces):
        raise TemplateError(f"its text contains {token}, the image token; set --special_tokens_in_text text")
    paths = iter(images)
    return [_filled(piece, sizes[next(paths)], token) if piece.is_image else piece for piece in pieces]


def _filled(piece: Piece, size: int | ImageError, token: str) -> Piece:
    if isinstance(size, ImageError):
        raise size
    assert isinstance(piece.content, str)
    return replace(piece, content=piece.content.replace(token, token * size))


def open_image(path: str) -> Image:
    """Return an image, upright, in RGB.

    Raises:
        ImageError: It is missing, or cannot be read.
    """
    from PIL import ImageOps

    with _opened(path) as image:
        try:
            return ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError, SyntaxError) as err:
            raise _broken(path, err) from err


def _checked_size(path: str) -> tuple[int, int]:
    """Return (height, width) of the upright image, which is decoded to check that it is complete."""
    with _opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) >= 5  # the orientations that lie on their side
        try:
            image.draft("RGB", (1, 1))
            image.load()
        except (OSError, ValueError, SyntaxError) as err:
            raise _broken(path, err) from err
    return (width, height) if turned else (height, width)


FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "AVIF", "JPEG2000")
"""Accepted image formats; others of Pillow start programs (EPS: Ghostscript) or follow paths."""


def _opened(path: str) -> Image:
    need("PIL", "An image", extra="vision", name="Pillow")
    from PIL import Image, UnidentifiedImageError

    if is_address(path):
        raise ImageError(f"{path[:80]}: a URL; download the image and give the file")
    try:
        Image.init()
        return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])
    except FileNotFoundError:
        raise ImageError(f"{path}: there is no such file") from None
    except UnidentifiedImageError as err:
        raise ImageError(f"{path}: not a readable image") from err
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
        raise _broken(path, err) from err


def _broken(path: str, err: Exception) -> ImageError:
    return ImageError(f"{path}: it cannot be read; the file may be truncated ({err})")


def _stat(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return 0, 0
    return found.st_size, found.st_mtime_ns
