"""Move secrets from the command line to the environment, where no tracker, report or process list shows them.

Trackers save `sys.argv`, and other users of a machine can read the command lines of processes. So the command restarts
itself without the secrets, and reads them from its environment, which both leave alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from llmtune.arguments.aliases import ALIASES
from llmtune.utils.processes import can_replace, replace_process

SECRETS = ("hub_token", "api_key")
"""Flags whose values are secret."""
VARIABLE = "LLMTUNE_HIDDEN_{}"


def hidden_secret(flag: str) -> str | None:
    """The value of a flag that `hide_secrets` moved to the environment."""
    return os.environ.get(VARIABLE.format(flag.upper()))


def hide_secrets() -> None:
    """Restart this command without its secrets, if it was given any; call this before anything reads them.

    If this process was not started with these words (a fork, a notebook), only `sys.argv` is cleared of them.
    """
    found, rest = _without_secrets(sys.argv)
    if not found:
        return
    os.environ.update({VARIABLE.format(flag.upper()): value for flag, value in found.items()})
    typed, line = _without_secrets(sys.orig_argv)
    sys.argv[:] = rest
    if typed and can_replace():  # elsewhere this process would stay, and its command line with it
        replace_process([sys.executable, *line[1:]])


def _without_secrets(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The secrets by flag, and the words without them."""
    found: dict[str, str] = {}
    rest: list[str] = []
    waiting = ""
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        flag = name.replace("-", "_") if word.startswith("--") else ""
        flag = ALIASES[flag].target if flag in ALIASES else flag
        if flag in SECRETS:
            waiting = "" if equals else flag
            if equals:
                found[flag] = value
        elif waiting and not word.startswith("--"):
            found[waiting], waiting = word, ""
        else:
            waiting = ""
            rest.append(word)
    return found, rest
