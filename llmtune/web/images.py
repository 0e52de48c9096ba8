"""Uploaded images: kept while the page runs, and checked before a model receives them."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import streamlit as st

KINDS = ("png", "jpg", "jpeg", "webp")


def keep_pictures(files: Iterable[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (paths of the images among Streamlit's uploaded `files`, names of the other files)."""
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
    """Return the folder of all visitors' images; it is removed when the page ends."""
    return tempfile.TemporaryDirectory(prefix="llmtune-web-")


def _is_picture(path: Path) -> bool:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.verify()
    except Exception:  # a reader may raise anything for a broken file
        return False
    return True
