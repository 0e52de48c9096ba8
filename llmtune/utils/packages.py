"""Optional packages: looked for without importing them, and named with the command that installs them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from llmtune.errors import MissingPackageError


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
