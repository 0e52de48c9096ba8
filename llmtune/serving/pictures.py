"""Images that a request brings: data URLs become files for as long as its answers are written."""

from __future__ import annotations

import base64
import binascii
import shutil
import tempfile
import weakref
from pathlib import Path

from llmtune.serving.errors import ApiError

__all__ = ["Pictures"]


class Pictures:
    """The images of one request, in a folder that goes with the object."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self._folder: Path | None = None

    def add(self, url: str) -> str:
        """The path of the image in a data URL.

        Raises:
            ApiError: An address, which this server does not fetch; a path, which is none of the client's; no base64.
        """
        head, comma, content = url.partition(",")
        if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
            raise ApiError(
                400,
                "image_url takes data:image/...;base64,... alone: this server fetches nothing and reads no files.",
                param="messages",
            )
        try:
            data = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError):
            raise ApiError(400, "The data of an image_url is not base64.", param="messages") from None
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="llmtune-serve-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / f"image-{len(self.paths) + 1}"
        path.write_bytes(data)
        self.paths.append(str(path))
        return str(path)
