"""The board as an ASGI application, and the server that runs it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from pathlib import Path
from typing import Any

from llmtune.arguments.board import KEY_VARIABLE, BoardArguments
from llmtune.board.children import FOLDER, reap, run_of, start
from llmtune.board.security import Application, Guard
from llmtune.board.state import Board
from llmtune.errors import LlmtuneError
from llmtune.utils.system import listen, shown_host

QUEUE_SECONDS = 3.0
EVERYWHERE = ("0.0.0.0", "::", "")


def make_app(board: Board, *, key: str, hosts: frozenset[str], port: int) -> Application:
    """Return the board's pages behind their guard."""
    os.environ.setdefault("NICEGUI_STORAGE_PATH", str(board.root / FOLDER / "nicegui"))
    from fastapi import FastAPI
    from nicegui import app as pages_app
    from nicegui import ui

    from llmtune.board.pages import register

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    register(board)
    pages_app.timer(QUEUE_SECONDS, lambda: start_queued(board))
    ui.run_with(app, title="llmtune", favicon="🎛️", show_welcome_message=False, reconnect_timeout=30)
    return Guard(app, key=key, hosts=hosts, port=port)


def serve(args: BoardArguments) -> None:
    """Serve the board until it is stopped."""
    import uvicorn

    board = Board(Path(args.root).expanduser(), allow_code=args.allow_code, read_only=args.read_only)
    (board.root / FOLDER).mkdir(parents=True, exist_ok=True)
    key = os.environ.get(KEY_VARIABLE) or secrets.token_urlsafe(24)
    listener = listen(args.host, args.port)
    listener.listen(128)  # who opens the printed address at once waits, and is not refused
    port = listener.getsockname()[1]
    app: Any = make_app(board, key=key, hosts=names_of(args.host, port), port=port)
    address = f"http://{shown_host(args.host)}:{port}/?key={key}"
    print_address(address)
    if args.open_browser:
        _open_when_ready(address)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        board.servers.close()
        board.helper.close()


async def start_queued(board: Board) -> None:
    """Start the next queued run, if it is wanted and its devices are free."""
    reap()
    if board.read_only or not board.queue_on:
        return
    taken = await asyncio.to_thread(board.queue.take_next)
    if taken is not None:
        started = start(board.root, taken.words, environment={"CUDA_VISIBLE_DEVICES": taken.gpus} if taken.gpus else {})
        with contextlib.suppress(LlmtuneError):  # its log says why
            await run_of(started, board.root)


def names_of(host: str, port: int) -> frozenset[str]:
    """Return the names by which the board may be called; empty where it listens on all addresses."""
    if host.strip("[]") in EVERYWHERE:
        return frozenset()
    names = {host, shown_host(host), "127.0.0.1", "localhost", "[::1]", socket.gethostname().lower()}
    return frozenset({f"{name}:{port}" for name in names})


def print_address(address: str) -> None:
    """Tell the address, and how to reach it from elsewhere."""
    import sys

    port = address.rsplit(":", 1)[1].partition("/")[0]
    sys.stdout.write(
        f"Board: {address}\n"
        f"From another machine: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE, then open the same address there.\n"
        "Ctrl-C stops the board; runs go on without it.\n"
    )
    sys.stdout.flush()


def _open_when_ready(address: str) -> None:
    import threading
    import webbrowser

    threading.Timer(1.5, webbrowser.open, [address]).start()
