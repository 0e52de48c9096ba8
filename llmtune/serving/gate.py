"""What every request passes first: the key, the size of its body, the counts."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from llmtune.serving.errors import error_response
from llmtune.serving.service import Service

__all__ = ["OPEN_PATHS", "Gate"]

OPEN_PATHS = ("/health",)
"""What answers without the key: a load balancer has none."""
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics", "/openapi.json")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Gate:
    """ASGI middleware."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app = app
        self.service = service
        key = service.args.api_key
        self.expected = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._pass(scope, receive, counted)
        finally:
            metrics = self.service.metrics
            path = scope["path"] if scope["path"] in PATHS else "other"
            metrics.requests.labels(path, status or "gone").inc()
            metrics.latency.labels(path).observe(time.monotonic() - started)

    async def _pass(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if not self._is_known(scope["path"], headers.get(b"authorization", b"")):
            await error_response(
                401, "A key is needed: Authorization: Bearer KEY, the server's --api_key.", code="invalid_api_key"
            )(scope, receive, send)
            return
        if scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        body = await self._body(headers.get(b"content-length", b""), receive)
        if body is None:
            text = f"The body is larger than the {self.service.args.max_body_size:,} bytes that this server takes."
            await error_response(413, text, code="body_too_large")(scope, receive, send)
            return
        parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return parts.pop() if parts else await receive()

        await self.app(scope, again, send)

    def _is_known(self, path: str, given: bytes) -> bool:
        if self.expected is None or path in OPEN_PATHS:
            return True
        return hmac.compare_digest(given, self.expected)

    async def _body(self, length: bytes, receive: Receive) -> bytes | None:
        """The whole body, or None where it is too large: then no more of it is read."""
        limit = self.service.args.max_body_size
        if length.isdigit() and int(length) > limit:
            return None
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > limit:
                return None
            if not message.get("more_body", False):
                return bytes(body)
