"""Parse request bodies off the event loop, with limits checked before objects are built."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from pydantic_core import from_json

from llmtune.serving.errors import ApiError

__all__ = ["MAX_DEPTH", "BoundedRoute", "is_deeper"]

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
