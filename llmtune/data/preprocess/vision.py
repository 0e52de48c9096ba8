"""Images, named in the text by their paths and listed beside it."""

from __future__ import annotations

from llmtune.data.contents import image_path
from llmtune.data.preprocess.common import Row, text_of

__all__ = ["coco_caption"]

QUERY = "<img>{path}</img>please describe the image"
BETWEEN_CAPTIONS = "&&"


def coco_caption(row: Row) -> Row:
    """The first of the captions; the image is named by its path and not opened."""
    path = image_path(row.get("image"))
    caption, _, _ = text_of(row, "caption").partition(BETWEEN_CAPTIONS)
    return {"query": QUERY.format(path=path), "response": caption, "images": [path]}
