"""Tables of scores, readable as Markdown and in a terminal."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from llmtune.errors import UsageError


def markdown_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Return a table with one row per checkpoint and one column per score; missing scores are empty."""
    names = list(dict.fromkeys(name for found in scores.values() for name in found))
    rows = [["checkpoint", *names], ["---", *["---:"] * len(names)]]
    rows += [[key, *(_number(found.get(name)) for name in names)] for key, found in scores.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = [
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("| " + " | ".join([first, *rest]) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if abs(value) >= 1e5 else f"{value:.4f}"


# Local addresses to listen on


def listen(host: str, port: int) -> socket.socket:
    """Return a socket listening on an address.

    Raises:
        UsageError: It is in use, or not local.
    """
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as err:
        listener.close()
        reason = err.strerror or str(err)
        raise UsageError(f"--host {host} --port {port}: {reason}. Give another --port, or 0 for a free one.") from err
    listener.set_inheritable(False)
    return listener


def free_port(host: str, port: int) -> int:
    """Return the port itself, or a currently free one for 0.

    Raises:
        UsageError: As `listen` does.
    """
    with listen(host, port) as listener:
        return int(listener.getsockname()[1])


def shown_host(host: str) -> str:
    """Return the host of an address as a local browser writes it."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
    return everywhere.get(host, f"[{host}]" if ":" in host else host)
