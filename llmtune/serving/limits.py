"""Checks and counts of every request: API key, Host header, size and time limits, /metrics."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from llmtune.arguments.service import is_loopback
from llmtune.inference.generation import Generation
from llmtune.serving.protocol import error_response

if TYPE_CHECKING:
    from llmtune.inference.batching import Batcher
    from llmtune.inference.continuous import ContinuousBatcher
    from llmtune.inference.score_queue import ScoreQueue
    from llmtune.serving.served import Served


OPEN_PATHS = ("/health",)
"""Paths that need no key: a load balancer has none."""
PATHS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/score", "/score", "/classify"),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
    *("/v1/models", "/health", "/metrics", "/openapi.json"),
)

MAX_PIECES = 6
"""Time limit of a whole body, in read timeouts."""

AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]


class Gate:
    """ASGI middleware."""

    def __init__(self, app: Any, service: Served) -> None:
        self.app = app
        self.service = service
        key = service.args.api_key
        self.expected = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: AsgiMessage, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        status = 0

        async def counted(message: AsgiMessage) -> None:
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

    async def _pass(self, scope: AsgiMessage, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if not self._is_known(scope["path"], headers.get(b"authorization", b"")):
            await error_response(
                401,
                "An API key is required: Authorization: Bearer KEY, the server's --api_key.",
                code="invalid_api_key",
            )(scope, receive, send)
            return
        if not self._is_meant(scope["path"], headers.get(b"host", b"")):
            text = (
                "The Host header names another machine. A server without an API key accepts this machine's own names "
                "only, so that no web page can reach it: set LLMTUNE_API_KEY to accept others."
            )
            await error_response(403, text, code="wrong_host")(scope, receive, send)
            return
        if scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        try:
            body = await self._body(headers.get(b"content-length", b""), receive)
        except TimeoutError:
            await error_response(408, "The request did not arrive in time.", code="timeout")(scope, receive, send)
            return
        except ConnectionError:
            return
        if body is None:
            text = f"The body is larger than the limit of {self.service.max_body:,} bytes."
            await error_response(413, text, code="body_too_large")(scope, receive, send)
            return
        parts: list[AsgiMessage] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> AsgiMessage:
            return parts.pop() if parts else await receive()

        await self.app(scope, again, send)

    def _is_known(self, path: str, given: bytes) -> bool:
        if self.expected is None or path in OPEN_PATHS:
            return True
        return hmac.compare_digest(given, self.expected)

    def _is_meant(self, path: str, host: bytes) -> bool:
        """Return whether the Host header is one of this machine's own names, where there is no other protection.

        A malicious page can let its name resolve to 127.0.0.1 (DNS rebinding); the browser still sends that name.
        """
        if self.expected is not None or path in OPEN_PATHS or not host:
            return True
        name = host.decode("latin-1").lower()
        name = name[: name.find("]") + 1] if name.startswith("[") else name.partition(":")[0]
        return is_loopback(name) or name.strip("[]") == self.service.args.host.lower()

    async def _body(self, length: bytes, receive: Receive) -> bytes | None:
        """Return the whole body, or None where it is too large: then no more of it is read.

        Raises:
            TimeoutError: It stalls, or does not end. ConnectionError: The client has disconnected.
        """
        limit = self.service.max_body
        if length.isdigit() and int(length) > limit:
            return None
        body = bytearray()
        until = time.monotonic() + READ_TIMEOUT_S * MAX_PIECES
        while True:
            wait = min(READ_TIMEOUT_S, until - time.monotonic())
            message = await asyncio.wait_for(receive(), wait)
            if message["type"] == "http.disconnect":
                raise ConnectionError
            body += message.get("body", b"")
            if len(body) > limit:
                return None
            if not message.get("more_body", False):
                return bytes(body)


# Close connections that send nothing, or only a part of a request's head; uvicorn would keep them forever


READ_TIMEOUT_S = 20.0
"""Seconds for the head of a request, and between two chunks of its body."""
if TYPE_CHECKING:
    _Base: Any = object
else:
    _Base = AutoHTTPProtocol


class PatientProtocol(_Base):
    """Uvicorn's protocol with a timeout for the head of a request."""

    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._awaits_head():
            self._start()
        else:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _awaits_head(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _start(self) -> None:
        """Start the timer at the first byte; further bytes do not extend it."""
        if self._clock is None:
            self._clock = asyncio.get_running_loop().call_later(READ_TIMEOUT_S, self._end)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _end(self) -> None:
        self._clock = None
        if self._awaits_head() and not self.transport.is_closing():
            self.transport.close()


# Metrics for `/metrics`, in Prometheus' text format


SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Metrics of one server."""

    def __init__(self, batcher: Batcher | ContinuousBatcher | ScoreQueue) -> None:
        self.registry = CollectorRegistry()
        one = {"registry": self.registry}
        timed = {"registry": self.registry, "buckets": SECONDS}
        self.requests = Counter("llmtune_requests", "Requests, by path and status.", ["path", "status"], **one)
        self.latency = Histogram(
            "llmtune_request_seconds", "Seconds until the response was complete.", ["path"], **timed
        )
        self.first_token = Histogram("llmtune_first_token_seconds", "Seconds until the first token.", **timed)
        self.prompt_tokens = Counter("llmtune_prompt_tokens", "Prompt tokens, counted once per generation.", **one)
        self.answer_tokens = Counter("llmtune_generated_tokens", "Generated tokens.", **one)
        self.finished_rows = Counter("llmtune_answers", "Generations, by finish reason.", ["finish_reason"], **one)
        self.scores = Counter("llmtune_scores", "Sequences scored by a reward model.", **one)
        self.cancelled = Counter("llmtune_cancelled", "Cancelled requests.", **one)
        Gauge("llmtune_running", "Running generations.", **one).set_function(lambda: batcher.num_running)
        Gauge("llmtune_waiting", "Queued generations.", **one).set_function(lambda: batcher.num_waiting)

    def finished(self, rows: Sequence[Generation]) -> None:
        """Count finished generations."""
        for row in rows:
            self.prompt_tokens.inc(len(row.prompt.input_ids))
            self.answer_tokens.inc(len(row.ids))
            self.finished_rows.labels(row.finish_reason).inc()
            if row.first_token_at is not None:
                self.first_token.observe(row.first_token_at - row.made_at)

    def text(self) -> bytes:
        return bytes(generate_latest(self.registry))
