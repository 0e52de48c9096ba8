"""The five pages, each with a URL of its own."""

from __future__ import annotations

import importlib

from llmtune.board.state import Board

PAGES = ("runs", "new_run", "run", "compare", "chat")


def register(board: Board) -> None:
    """Register the pages of a board."""
    for name in PAGES:
        importlib.import_module(f"llmtune.board.pages.{name}").register(board)
