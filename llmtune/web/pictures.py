"""The pictures that come with a question: kept while the page runs, and looked at before a model sees them."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import streamlit as st

__all__ = ["KINDS", "keep_pictures"]

KINDS = ("png", "jpg", "jpeg", "webp")


def keep_pictures(files: Iterable[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(paths of the pictures among Streamlit's uploaded `files`, names of those that are none)."""
    paths, broken = [], []
    for file in files:
        path = Path(_folder().name) / f"{file.file_id}{Path(file.name).suffix}"
        path.write_bytes(file.getvalue())
        if _is_picture(path):
            paths.append(str(path))
        else:
            path.unlink()
            broken.append(file.name)
    return tuple(paths), tuple(broken)


@st.cache_resource  # type: ignore[untyped-decorator]
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Of the pictures of all visitors; it goes when the page ends."""
    return tempfile.TemporaryDirectory(prefix="llmtune-web-")


def _is_picture(path: Path) -> bool:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.verify()
    except Exception:  # whatever a broken file makes of its reader
        return False
    return True
