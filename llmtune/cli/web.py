"""`llmtune web`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtune.arguments.parser import parse
from llmtune.arguments.service import WebArguments
from llmtune.cli.dry_run import DryRunArguments, show_service
from llmtune.utils.logging import get_logger
from llmtune.utils.processes import replace_process
from llmtune.utils.system import free_port, need, shown_host

SUMMARY = """
A web page to chat with a checkpoint (curves and runs: llmtune board):
  llmtune web --ckpt_dir output/llmtune-tiny/v0-.../checkpoint-50
The page compares models side by side: the checkpoint, its base, and more adapters.
  llmtune web --ckpt_dir output/.../checkpoint-90 --adapters law=output/.../checkpoint-70
Access from other machines needs an API key:
  LLMTUNE_API_KEY=... llmtune web --ckpt_dir ... --host 0.0.0.0
Of a reward model, the page takes a prompt and a response, and shows the score.
Decoding is greedy at first, unless the checkpoint or a flag (--temperature, --top_p, ...) says otherwise.
"""


@dataclass(kw_only=True)
class WebCommand(DryRunArguments, WebArguments):
    """Web page."""


ARGUMENTS = WebCommand


def run(argv: Sequence[str]) -> int:
    args = parse(WebCommand, argv, command="web", summary=SUMMARY)
    if args.dry_run:
        show_service(args, {"page": f"http://{shown_host(args.host)}:{args.port}"})
        return 0
    need("streamlit", "llmtune web", extra="web")
    port = free_port(args.host, args.port)
    args.tell("the scores of a reward model" if args.scores else "generation")
    address = f"http://{shown_host(args.host)}:{port}"
    get_logger().info("Web page: %s (Ctrl-C stops it). The model is loaded at the first visit.", address)
    os.environ["LLMTUNE_API_KEY"] = args.api_key or ""  # not on the new command line, where all could read it
    flags = _without_key(argv)
    replace_process(streamlit_command(args.host, port, flags))


def streamlit_command(host: str, port: int, flags: Sequence[str]) -> list[str]:
    """Command line that starts the page."""
    import llmtune.web

    script = Path(llmtune.web.__file__).with_name("page.py")
    options = {
        "server.address": host,
        "server.port": str(port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "logger.level": "warning",
        "logger.hideWelcomeMessage": "true",  # ours says it; and Streamlit's asks another host for our address
        "client.toolbarMode": "minimal",
        "runner.magicEnabled": "false",  # it would draw the docstrings of page.py
    }
    settings = [word for name, value in options.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "streamlit", "run", str(script), *settings, "--", *flags]


def _without_key(argv: Sequence[str]) -> list[str]:
    words = list(argv)
    for place in reversed(range(len(words))):
        if words[place] == "--api_key":
            del words[place : place + 2]
        elif words[place].startswith("--api_key="):
            del words[place]
    return words
