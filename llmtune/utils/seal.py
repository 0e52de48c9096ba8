"""Seal records with a key that never leaves this user's cache folder, to recognise the user's own.

A checkpoint may come from anywhere; its sft_args.json is then untrusted and must not open local paths. An unchanged
record of this user's own runs may.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import Mapping
from typing import Any

from llmtune.utils.files import cache_root

SEAL = "_seal"
KEY_BYTES = 32


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with its seal; without one if the cache folder cannot be written."""
    plain = {name: value for name, value in record.items() if name != SEAL}
    key = _key(make=True)
    return plain if key is None else plain | {SEAL: _digest(plain, key)}


def with_changes(record: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the record with other values, sealed again if it was this user's own."""
    changed = {name: value for name, value in record.items() if name != SEAL} | changes
    return sealed(changed) if is_own(record) else changed


def is_own(record: Mapping[str, Any]) -> bool:
    """Return whether this user's llmtune wrote the record, unchanged."""
    found, key = record.get(SEAL), _key(make=False)
    if not isinstance(found, str) or key is None:
        return False
    plain = {name: value for name, value in record.items() if name != SEAL}
    return hmac.compare_digest(found.encode(), _digest(plain, key).encode())


def _digest(record: Mapping[str, Any], key: bytes) -> str:
    text = json.dumps(record, sort_keys=True, default=repr)  # as it is read back: lists for tuples, text for the rest
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def _key(*, make: bool) -> bytes | None:
    file = cache_root() / "seal.key"
    try:
        if make and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f".{file.name}.{os.getpid()}")
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
                out.write(secrets.token_bytes(KEY_BYTES))
            try:
                os.link(part, file)  # the first of several processes wins; a rename would replace its key
            except FileExistsError:
                pass
            finally:
                part.unlink()
        key = file.read_bytes()
    except OSError:
        return None
    return key if len(key) == KEY_BYTES else None
