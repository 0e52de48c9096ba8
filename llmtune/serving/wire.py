"""Bodies of requests: bounded JSON, and images."""

from __future__ import annotations

import base64
import binascii
import io
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from pydantic_core import from_json

from llmtune.serving.protocol import ApiError

MAX_DEPTH = 64
"""Maximum nesting of objects and lists in request fields for the chat template or the log."""


class BoundedRoute(APIRoute):
    """Route whose requests parse their JSON on a thread: megabytes of it would block all other requests."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            request = _BoundedRequest(request.scope, request.receive)
            if "json" in request.headers.get("content-type", ""):
                await request.json()  # FastAPI, which parses it again, reports errors in its own words
            return await handle(request)

        return bounded


class _BoundedRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = await run_in_threadpool(_parsed, await self.body(), self.app.state.max_messages)
        return self._json


def _parsed(body: bytes, max_messages: int) -> Any:
    """Parse JSON with pydantic's parser, which refuses half surrogate pairs and deep nesting, unlike Python's.

    Messages are counted before objects are built: a quotation mark inside a text has a backslash before it.
    """
    if body.count(b'"role"') > max_messages:
        text = f"messages: more than {max_messages:,} messages do not fit into the model's context."
        raise ApiError(400, text, param="messages", code="too_long")
    try:
        return from_json(body)
    except ValueError as err:
        text, code = f"The body is not JSON ({err}).", "json_invalid"
        if "recursion" in str(err):
            text, code = "The body is nested too deeply.", "too_deep"
        elif "escape" in str(err) or "unicode" in str(err):
            text = f"The body holds half of a surrogate pair, or is not UTF-8 ({err})."
        raise ApiError(400, text, code=code) from None


def is_deeper(value: Any, depth: int = MAX_DEPTH) -> bool:
    """Return whether objects and lists are nested deeper than this many levels."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


# Images of a request: data URLs become files for the duration of its generations


FORMATS = {"png": "PNG", "jpeg": "JPEG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP"}
"""Accepted image types; Pillow's other readers (EPS starts Ghostscript) never receive the bytes."""
MAX_PIXELS = 50_000_000
TOO_LARGE = f"messages: image_url: the image has more than {MAX_PIXELS:,} pixels."


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
            raise _refusal(
                "image_url must be data:image/...;base64,...: this server fetches no URLs and reads no files."
            )
        try:
            data = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError):
            raise _refusal("The data of an image_url is not base64.") from None
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
        raise _refusal(f"messages: image_url: image/{declared[:40]} is not supported; supported: {types}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=[FORMATS[declared]]) as image:
                width, height = image.size
    except Exception as err:  # a reader may raise anything for bytes that are no image of its kind
        if isinstance(err, Image.DecompressionBombError):
            raise _refusal(TOO_LARGE) from None
        raise _refusal(f"messages: image_url: its data is not a readable image/{declared}.") from None
    if width * height > MAX_PIXELS:
        raise _refusal(TOO_LARGE)


def _refusal(text: str) -> ApiError:
    return ApiError(400, text, param="messages")
