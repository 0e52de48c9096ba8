"""Bodies of requests, bounded, and the lines of streamed responses."""

from __future__ import annotations

import copy
import queue
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from pydantic_core import from_json

from llmtune.serving.errors import ApiError
from llmtune.templates.chat import ChatTemplate

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


# Pool of template copies for rendering prompts: threads cannot share a tokenizer


LONG = 20_000
"""Characters from which a prompt counts as long: about 20 ms of tokenising."""
NUM_SHORT = 2

_Copies = dict[str | None, ChatTemplate]


class Writers:
    """Copies of a service's templates, by adapter name; templates with the same tokenizer share its copy."""

    def __init__(self, templates: Mapping[str | None, ChatTemplate]) -> None:
        self._short: queue.LifoQueue[_Copies] = queue.LifoQueue()
        self._long: queue.LifoQueue[_Copies] = queue.LifoQueue()
        for place in (*[self._short] * NUM_SHORT, self._long):
            place.put(_copied(templates))

    @contextmanager
    def one(self, adapter: str | None, num_characters: int) -> Iterator[ChatTemplate]:
        """Borrow a copy for a prompt of this many characters."""
        place = self._long if num_characters >= LONG else self._short
        copies = place.get()
        try:
            yield copies[adapter]
        finally:
            place.put(copies)


def _copied(templates: Mapping[str | None, ChatTemplate]) -> _Copies:
    tokenizers: dict[int, Any] = {}
    for template in templates.values():
        if id(template.tokenizer) not in tokenizers:
            tokenizers[id(template.tokenizer)] = copy.deepcopy(template.tokenizer)
    return {name: template.copy(tokenizers[id(template.tokenizer)]) for name, template in templates.items()}
