"""The arguments of `llmtune board`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from llmtune.arguments.fields import Problems, Rule, between, check_rules, limited
from llmtune.arguments.service import is_loopback

KEY_VARIABLE = "LLMTUNE_BOARD_KEY"
"""The user's own key. No flag has it: other users of the machine can read command lines."""


@dataclass(kw_only=True)
class BoardArguments:
    """Board."""

    root: str = limited(".")
    """Folder of data, models and runs; the board reads and writes nothing outside of it."""
    host: str = limited("127.0.0.1")
    """Address to listen on. Any address but loopback needs a key of yours, in LLMTUNE_BOARD_KEY; else a new one is made
    at each start."""
    port: int = limited(8600, between(0, 65535))
    """Port to listen on; 0: a free one, shown in the start message."""
    allow_code: bool = limited(False)
    """Let the form set what makes a run execute code: --trust_remote_code, --custom_register_path, own reward files."""
    read_only: bool = limited(False)
    """Show, and start or change nothing: for a shared screen."""
    open_browser: bool = limited(False)
    """Open the board in a browser of this machine."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda args: is_loopback(args.host) or os.environ.get(KEY_VARIABLE),
            "--host {host} is reachable from other machines: set a key of yours in LLMTUNE_BOARD_KEY. Without one, "
            "only 127.0.0.1 is allowed; ssh -L reaches it from elsewhere.",
        ),
        Rule(lambda args: Path(args.root).expanduser().is_dir(), "--root {root}: there is no such folder."),
    )

    def __post_init__(self) -> None:
        problems = Problems()
        check_rules(self, problems)
        problems.raise_if_any()
