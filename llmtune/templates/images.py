"""Images of rows: how many tokens each of them takes, and what a model is given to see it.

A tokenizer whose model sees images carries an `ImageReader`, put there by `llmtune.models.vision` and found by
`images_of`; whatever has the tokenizer (templates, collators, engines, checkpoints) has the images with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from llmtune.data.image_marks import is_address
from llmtune.errors import DataError, MissingPackageError, TemplateError, UsageError
from llmtune.templates.pieces import Piece
from llmtune.utils.logging import get_logger

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

__all__ = [
    "ImageError",
    "ImageReader",
    "Sizes",
    "carry_images",
    "fill_images",
    "images_of",
    "limit_pixels",
    "open_image",
]

ATTRIBUTE = "llmtune_images"
NUM_THREADS = 8


class ImageError(DataError):
    """An image that is missing or cannot be read; the message begins with its name."""


Sizes: TypeAlias = "dict[str, int | ImageError]"
"""Tokens of each image, or what is wrong with it."""


def images_of(tokenizer: Any) -> ImageReader | None:
    """What reads images for the model of this tokenizer; None where it sees none."""
    return getattr(tokenizer, ATTRIBUTE, None)


def limit_pixels(tokenizer: Any, max_pixels: int | None) -> None:
    """Follow `--max_pixels`, or say that it has no effect."""
    reader = images_of(tokenizer)
    if max_pixels is not None and reader is None:
        get_logger().warning("--max_pixels has no effect: the model does not see images.")
    elif max_pixels is not None and reader is not None:
        reader.limit_pixels(max_pixels)


def carry_images(tokenizer: Any, reader: ImageReader) -> None:
    setattr(tokenizer, ATTRIBUTE, reader)


class ImageReader:
    """One model's eyes.

    Args:
        processor: The model's image processor, of transformers.
        token_id: What stands in the ids for one position of an image.
        token: Its text.
        num_tokens: (height, width) in pixels -> positions that the image takes.
        save: Copies what the model's folder says about images into another one; True: the processor was changed.
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
        """Make larger images smaller than the model's own limit asks for.

        Raises:
            UsageError: The model brings all images to one size, or to more pixels than that.
        """
        size = self.processor.size
        least, most = size.get("shortest_edge"), size.get("longest_edge")
        if getattr(self.processor, "merge_size", None) is None or least is None or most is None:
            raise UsageError("--max_pixels: this model brings all images to one size. Leave the flag away.")
        if max_pixels < least:
            raise UsageError(f"--max_pixels {max_pixels:,}: this model needs {least:,} pixels or more.")
        self.processor.size = type(size)(shortest_edge=least, longest_edge=min(max_pixels, most))
        self._is_limited = True

    def save(self, folder: Path) -> None:
        """Write into a checkpoint's folder what other programs need to see as this model was trained to."""
        self._save(folder, self._is_limited)

    def measure(self, paths: Iterable[str]) -> Sizes:
        """Tokens of each image, or what is wrong with it.

        Each is decoded once, at the lowest resolution its format has, to learn now and not in the middle of a run
        that a file is cut off; the pixels are not kept.
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
        except ValueError as err:  # a strip that no model has patches for
            return ImageError(f"{path}: {err}")

    def inputs(self, paths: Sequence[str], input_ids: Tensor) -> dict[str, Tensor]:
        """What the model's forward takes besides the ids: pixels, and where in `input_ids` [B, T] they belong.

        Empty without images.

        Raises:
            ImageError: An image has gone since its row was encoded.
        """
        if not paths:
            return {}
        found = dict(self.processor(images=[open_image(path) for path in paths], return_tensors="pt"))
        if "image_grid_thw" in found:  # models with positions in three dimensions are told which tokens are an image's
            found["mm_token_type_ids"] = (input_ids == self.token_id).to(input_ids.dtype)
        return found

    def state(self, paths: Iterable[str]) -> list[tuple[str, int, int]]:
        """What the encoded rows depend on: the files' sizes and times (0 where there is no file)."""
        return [(path, *_stat(path)) for path in sorted(set(paths))]


def fill_images(
    pieces: Sequence[Piece], images: Sequence[str], sizes: Sizes, token: str, *, may_spell: bool
) -> list[Piece]:
    """Write the image token as often as each image has positions.

    Args:
        images: Those that the pieces stand for, in order.
        may_spell: Whether the spelling of the token is only text where it stands in the data.

    Raises:
        TemplateError: The data spells the token, and that is none. ImageError: An image that cannot be read.
    """
    if not may_spell and any(piece.from_data and token in piece.content for piece in pieces):
        raise TemplateError(f"its text spells {token}, which stands for an image; --special_tokens_in_text text")
    paths = iter(images)
    return [_filled(piece, sizes[next(paths)], token) if piece.is_image else piece for piece in pieces]


def _filled(piece: Piece, size: int | ImageError, token: str) -> Piece:
    if isinstance(size, ImageError):
        raise size
    assert isinstance(piece.content, str)
    return replace(piece, content=piece.content.replace(token, token * size))


def open_image(path: str) -> Image:
    """An image as its viewer sees it, upright, in RGB.

    Raises:
        ImageError: There is none, or it cannot be read.
    """
    from PIL import ImageOps

    with _opened(path) as image:
        try:
            return ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError, SyntaxError) as err:
            raise _broken(path, err) from err


def _checked_size(path: str) -> tuple[int, int]:
    """(height, width) of the upright image, which is decoded to see that it is whole."""
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
"""What is read as an image; Pillow knows more, and some of it starts programs (EPS: Ghostscript) or follows paths."""


def _opened(path: str) -> Image:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingPackageError("Images need Pillow. Install it with: pip install 'llmtune[vision]'") from None
    if is_address(path):
        raise ImageError(f"{path[:80]}: an address; download the image and name the file")
    try:
        Image.init()
        return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])
    except FileNotFoundError:
        raise ImageError(f"{path}: there is no such file") from None
    except UnidentifiedImageError as err:
        raise ImageError(f"{path}: no image that can be read") from err
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
        raise _broken(path, err) from err


def _broken(path: str, err: Exception) -> ImageError:
    return ImageError(f"{path}: it cannot be read, the file may be cut off ({err})")


def _stat(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return 0, 0
    return found.st_size, found.st_mtime_ns
