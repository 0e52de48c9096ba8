"""`llmtune board`."""

from __future__ import annotations

from collections.abc import Sequence

from llmtune.arguments.board import BoardArguments
from llmtune.arguments.parser import parse
from llmtune.utils.system import need

SUMMARY = """
A board in the browser: start runs from a form, watch, stop, resume and compare them, chat with their checkpoints. It
shows the runs below the folder where it is started, or below --root, by whomever they were started:
  llmtune board
  llmtune board --root . --port 8700
It prints its address, which holds a key. Runs go on when the page, or the board itself, is closed.
"""

ARGUMENTS = BoardArguments


def run(argv: Sequence[str]) -> int:
    args = parse(BoardArguments, argv, command="board", summary=SUMMARY)
    need(("nicegui", "uvicorn", "httpx"), "llmtune board", extra="board", name="nicegui")
    from llmtune.board.app import serve

    serve(args)
    return 0
