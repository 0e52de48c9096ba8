"""Secrets that were typed on a command line: moved to where no tracker, report or list of processes shows them.

Trackers keep `sys.argv`, and other users of a machine can read the words that a process was started with. So the
command starts itself again without them, and finds them in its environment, which both leave alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from llmtune.arguments.aliases import ALIASES

__all__ = ["SECRETS", "hidden_secret", "hide_secrets"]

SECRETS = ("hub_token", "api_key")
"""Flags whose values are secret."""
VARIABLE = "LLMTUNE_HIDDEN_{}"


def hidden_secret(flag: str) -> str | None:
    """The value of a flag that `hide_secrets` moved to the environment."""
    return os.environ.get(VARIABLE.format(flag.upper()))


def hide_secrets() -> None:
    """Start this command again without its secrets where it was given any; nothing may have read them before.

    Where this process was not started with these words (a fork, a notebook), `sys.argv` alone is cleared of them.
    """
    found, rest = _without_secrets(sys.argv)
    if not found:
        return
    os.environ.update({VARIABLE.format(flag.upper()): value for flag, value in found.items()})
    typed, line = _without_secrets(sys.orig_argv)
    sys.argv[:] = rest
    if typed and os.name == "posix":
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, line)


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
