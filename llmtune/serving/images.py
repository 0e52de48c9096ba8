"""Images of a request: data URLs become files for the duration of its generations."""

from __future__ import annotations

import base64
import binascii
import io
import shutil
import tempfile
import warnings
import weakref
from pathlib import Path

from llmtune.serving.errors import ApiError

FORMATS = {"png": "PNG", "jpeg": "JPEG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP"}
"""Accepted image types; Pillow's other readers (EPS starts Ghostscript) never receive the bytes."""
MAX_PIXELS = 50_000_000


class Pictures:
    """The images of one request, in a folder that is removed with the object."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self._folder: Path | None = None

    def add(self, url: str) -> str:
        """Return the path of the image in a data URL.

        Raises:
            ApiError: A URL, which this server does not fetch; a local path; invalid base64; no image of the declared
                type; too many pixels.
        """
        head, comma, content = url.partition(",")
        if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
            raise ApiError(
                400,
                "image_url must be data:image/...;base64,...: this server fetches no URLs and reads no files.",
                param="messages",
            )
        try:
            data = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError):
            raise ApiError(400, "The data of an image_url is not base64.", param="messages") from None
        _check(data, head.removeprefix("data:image/").removesuffix(";base64").partition(";")[0].lower())
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="llmtune-serve-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / f"image-{len(self.paths) + 1}"
        path.write_bytes(data)
        self.paths.append(str(path))
        return str(path)


def _check(data: bytes, declared: str) -> None:
    """Check the header of an image, by its declared type, before anything decodes it."""
    from PIL import Image

    if declared not in FORMATS:
        types = ", ".join(f"image/{name}" for name in FORMATS)
        raise ApiError(
            400, f"messages: image_url: image/{declared[:40]} is not supported; supported: {types}.", param="messages"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=[FORMATS[declared]]) as image:
                width, height = image.size
    except Exception as err:  # a reader may raise anything for bytes that are no image of its kind
        if isinstance(err, Image.DecompressionBombError):
            raise _too_large() from None
        raise ApiError(
            400, f"messages: image_url: its data is not a readable image/{declared}.", param="messages"
        ) from None
    if width * height > MAX_PIXELS:
        raise _too_large()


def _too_large() -> ApiError:
    return ApiError(400, f"messages: image_url: the image has more than {MAX_PIXELS:,} pixels.", param="messages")
