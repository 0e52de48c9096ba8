"""JSON over HTTP with the standard library: a connection a thread, which is kept open."""

from __future__ import annotations

import http.client
import json
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from llmtune.errors import RolloutError, UsageError, one_line

RETRY_S = 0.5
BUSY = (429, 503)


class JsonClient:
    """Posts to a server. Thread-safe.

    Args:
        url: http://HOST:PORT, with or without /v1 behind it.
        api_key: Sent as `Authorization: Bearer`.
        timeout_s: Seconds for one answer, and for a busy server to become free.

    Raises:
        UsageError: It is no URL.
    """

    def __init__(self, url: str, api_key: str | None, timeout_s: float) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url} is not the URL of a server. Give it as http://HOST:PORT.")
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._host, self._port = parts.hostname, parts.port
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._headers: dict[str, str] = {}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout_s = timeout_s
        self._own = threading.local()
        self._open: set[http.client.HTTPConnection] = set()

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Return status and body, parsed where it is JSON; a busy server is asked again.

        Raises:
            RolloutError: There is no server, or it does not answer in time.
        """
        data = json.dumps(body).encode()
        until = time.monotonic() + self._timeout_s
        while True:
            status, answer = self._answered(path, data)
            if status not in BUSY or time.monotonic() > until:
                return status, answer
            time.sleep(RETRY_S)

    def get(self, path: str) -> tuple[int, Any]:
        """Return status and body of a resource, parsed where it is JSON. Raises as `post` does."""
        return self._answered(path, None)

    def close(self) -> None:
        """Close the connections of all threads; none may be in use."""
        while self._open:
            self._open.pop().close()

    def _answered(self, path: str, data: bytes | None) -> tuple[int, Any]:
        try:
            try:
                return self._sent(path, data)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                return self._sent(path, data)  # a kept connection, which the server has closed
        except TimeoutError:
            raise RolloutError(
                f"The server at {self.url} did not answer within {self._timeout_s:g} seconds. Is it overloaded? Lower "
                "the number of requests in flight, or raise the timeout."
            ) from None
        except (OSError, http.client.HTTPException) as err:
            raise RolloutError(
                f"There is no server at {self.url} ({one_line(err)}). Start it, or correct the URL; training can be "
                "resumed from its last checkpoint."
            ) from err

    def _sent(self, path: str, data: bytes | None) -> tuple[int, Any]:
        connection = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self._kind(self._host, self._port, timeout=self._timeout_s)
            self._open.add(connection)
        try:
            method, kind = ("GET", {}) if data is None else ("POST", {"Content-Type": "application/json"})
            connection.request(method, self._path + path, data, self._headers | kind)
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
        except BaseException:
            connection.close()
            self._open.discard(connection)
            self._own.connection = None
            raise
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text


def message_of(answer: Any) -> str:
    """Return what an error body says, on one line: OpenAI's format, FastAPI's, or the text itself."""
    if isinstance(answer, dict):
        error = answer.get("error", answer.get("detail", answer))
        answer = error.get("message", error) if isinstance(error, dict) else error
    return one_line(answer)
