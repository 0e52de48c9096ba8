"""Who may ask the board, and for which files.

Other users of the machine, and web pages in the browser of its user, can reach a port of the loopback address: so a
key is asked for everywhere, once, and the Host and Origin of each request are checked.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from llmtune.errors import UsageError

Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]
COOKIE = "llmtune_board"
HEADERS = (
    (
        b"content-security-policy",
        # the page library compiles its templates in the browser, which is 'unsafe-eval'
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' ws: wss:; object-src 'none'; "
        b"base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)


class Guard:
    """ASGI middleware: lets requests pass that have the key, and come from a page of the board itself.

    Args:
        hosts: Names by which the board may be called, with its port: `127.0.0.1:8600`. Empty: any, for a board that
            listens on all addresses, whose name cannot be known.
        port: Names the cookie, which browsers send to all ports of a host: two boards must not sign each other out.
    """

    def __init__(self, app: Application, *, key: str, hosts: frozenset[str], port: int) -> None:
        self.app = app
        self.key = key
        self.hosts = hosts
        self.cookie = f"{COOKIE}_{port}"

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if problem := self._problem(scope, headers):
            await _refuse(scope, receive, send, problem)
            return
        query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
        if self._is_key(query.get("key", "")) and scope["type"] == "http":
            rest = {name: value for name, value in query.items() if name != "key"}
            await _take_key(scope, send, f"{self.cookie}={self.key}", rest)
            return
        if not self._is_key(_cookie(headers.get("cookie", ""), self.cookie)):
            await _refuse(scope, receive, send, "Open the address that llmtune board printed: it holds the key.")
            return
        await self.app(scope, receive, _with_headers(send))

    def _problem(self, scope: Scope, headers: dict[str, str]) -> str:
        host = headers.get("host", "").lower()
        if self.hosts and host not in self.hosts:
            return f"This is no name of the board: {host[:80]!r}."
        origin = headers.get("origin")
        is_change = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")
        if origin is not None and urlsplit(origin).netloc.lower() != host:
            return "A page of another site may not ask the board."
        if is_change and origin is None and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return "A page of another site may not ask the board."
        return ""

    def _is_key(self, text: str) -> bool:
        return hmac.compare_digest(text.encode("utf-8", "replace"), self.key.encode())


def _cookie(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return found.value if found is not None else ""


async def _take_key(scope: Scope, send: Any, named: str, rest: dict[str, str]) -> None:
    """Turn the key of an address into a cookie that scripts cannot read, and that no other site can send.

    Args:
        named: Name and value of the cookie. rest: The other parts of the query.
    """
    path = scope["path"] + (f"?{urlencode(rest)}" if rest else "")
    target = path if path.startswith("/") and not path.startswith("//") else "/"
    cookie = f"{named}; Path=/; HttpOnly; SameSite=Strict"
    headers = [(b"location", target.encode("latin-1")), (b"set-cookie", cookie.encode()), *HEADERS]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _refuse(scope: Scope, receive: Any, send: Any, problem: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": problem[:100]})
        return
    body = problem.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()), *HEADERS]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Any) -> Any:
    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return sent


# Files


def inside(root: Path, text: str) -> Path:
    """Return a path below the root, links followed.

    Raises:
        UsageError: It leads out of it.
    """
    try:
        path = (root / Path(text).expanduser()).resolve()
        is_inside = path.is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):
        is_inside = False
    if not is_inside:
        raise UsageError(f"{text[:120]!r} is outside of {root}. Start the board with a --root that has it.")
    return path


def leads_out(root: Path, text: str) -> bool:
    """Whether a value of a flag is a path outside of the root; a name of a hub's repository is none."""
    if text.startswith("~") or Path(text).is_absolute() or ".." in Path(text).parts or (root / text).exists():
        try:
            inside(root, text)
        except UsageError:
            return True
    return False
