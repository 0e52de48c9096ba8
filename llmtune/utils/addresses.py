"""Addresses of this machine to listen at."""

from __future__ import annotations

import socket

from llmtune.errors import UsageError

__all__ = ["free_port", "listen", "shown_host"]


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        UsageError: It is taken, or is none of this machine.
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
    """The port itself, or for 0 one that is free at the moment.

    Raises:
        UsageError: As `listen` does.
    """
    with listen(host, port) as listener:
        return int(listener.getsockname()[1])


def shown_host(host: str) -> str:
    """How a browser on this machine writes the host of an address."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
    return everywhere.get(host, f"[{host}]" if ":" in host else host)
