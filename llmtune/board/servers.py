"""Models to chat with: each is a child `llmtune serve`, so that unloading it gives all of its memory back."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.board.children import Started, start
from llmtune.errors import LlmtuneError, UsageError
from llmtune.utils.system import free_port

MOST = 4
HOST = "127.0.0.1"
SECONDS_TO_LOAD = 1800.0


@dataclass
class Server:
    """A loaded model. `name`: as chosen, a folder or a key. `model`: its name in requests."""

    name: str
    port: int
    key: str
    started: Started
    model: str = ""
    ready: bool = False

    @property
    def memory(self) -> int:
        """Bytes of its processes."""
        import psutil

        try:
            parent = psutil.Process(self.started.process.pid)
            return sum(one.memory_info().rss for one in [parent, *parent.children(recursive=True)])
        except psutil.Error:
            return 0


class Servers:
    """The loaded models of a board. They end with it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.loaded: dict[str, Server] = {}

    async def load(self, name: str, flags: list[str]) -> Server:
        """Start a server and wait until it answers.

        Raises:
            UsageError: There are four already. LlmtuneError: It ended; the message is its own.
        """
        if name in self.loaded:
            return self.loaded[name]
        if len(self.loaded) >= MOST:
            raise UsageError(f"{MOST} models are loaded already: unload one first.")
        port, key = free_port(HOST, 0), secrets.token_urlsafe(16)
        words = ["serve", *flags, "--host", HOST, "--port", str(port)]
        started = start(self.root, words, environment={"LLMTUNE_API_KEY": key}, leashed=True)
        server = Server(name, port, key, started)
        self.loaded[name] = server
        try:
            await self._wait(server)
        except BaseException:
            await self.unload(name)
            raise
        return server

    async def _wait(self, server: Server) -> None:
        import httpx

        async with httpx.AsyncClient(trust_env=False) as client:
            for _ in range(round(SECONDS_TO_LOAD / 0.2)):
                if server.started.process.poll() is not None:
                    lines = [line for line in server.started.said().splitlines() if line.strip()] or ["It ended."]
                    raise LlmtuneError(lines[-1].removeprefix("llmtune: "))
                try:
                    found = await client.get(f"http://{HOST}:{server.port}/v1/models", headers=_headers(server))
                    if found.status_code == 200:
                        server.model, server.ready = str(found.json()["data"][0]["id"]), True
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.2)
        raise LlmtuneError(f"{server.name} has not answered within {SECONDS_TO_LOAD:.0f} s.")

    async def unload(self, name: str) -> None:
        """End a server, and wait until its memory is free."""
        server = self.loaded.pop(name, None)
        if server is None:
            return
        process = server.started.process
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, 20)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)

    def close(self) -> None:
        for server in self.loaded.values():
            server.started.process.terminate()
        self.loaded.clear()

    async def ask(self, server: Server, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Yield the pieces of one response.

        Raises:
            LlmtuneError: The server refuses the request.
        """
        import httpx

        address = f"http://{HOST}:{server.port}/v1/chat/completions"
        async with (
            httpx.AsyncClient(trust_env=False, timeout=None) as client,
            client.stream(
                "POST", address, json=body | {"stream": True, "model": server.model}, headers=_headers(server)
            ) as found,
        ):
            if found.status_code != 200:
                raise LlmtuneError(_refusal(await found.aread()))
            async for line in found.aiter_lines():
                data = line.removeprefix("data: ")
                if line.startswith("data: ") and data != "[DONE]":
                    part = json.loads(data)
                    if "error" in part:
                        raise LlmtuneError(str(part["error"].get("message", part["error"])))
                    for choice in part.get("choices", []):
                        yield choice


def _headers(server: Server) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.key}"}


def _refusal(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace")[:300]
