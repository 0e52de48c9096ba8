"""Local addresses to listen on."""

from __future__ import annotations

import socket

from llmtune.errors import UsageError

__all__ = ["free_port", "listen", "shown_host"]


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
