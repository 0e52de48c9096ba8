"""Optional packages, and local addresses to listen on."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Sequence

from llmtune.errors import MissingPackageError, UsageError


def need(packages: str | Sequence[str], by: str, *, extra: str = "", name: str = "", advice: str = "") -> None:
    """Require packages that a flag, a command or a kind of data needs.

    Args:
        packages: Import names. by: Subject of the message: "--suite", "llmtune serve".
        extra: Extra of llmtune that brings them; without one, their own name is installed.
        name: Name to show, where it is another than the import name. advice: Another way, behind the message.

    Raises:
        MissingPackageError: One is not installed.
    """
    missing = missing_packages([packages] if isinstance(packages, str) else packages)
    if not missing:
        return
    shown = name or ", ".join(missing)
    command = f"'llmtune[{extra}]'" if extra else name.lower() or " ".join(missing)
    them = "it" if len(missing) == 1 else "them"
    raise MissingPackageError(f"{by} needs {shown}. Install {them} with: pip install {command}{advice}")


def missing_packages(packages: Sequence[str]) -> list[str]:
    return [package for package in packages if importlib.util.find_spec(package) is None]


def listen(host: str, port: int) -> socket.socket:
    """Return a socket listening on an address.

    Raises:
        UsageError: It is in use, or not local.
    """
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    # On Windows, SO_REUSEADDR would take the port of another server.
    listener.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR), 1)
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
