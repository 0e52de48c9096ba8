"""Image marks in user messages: `<image>`, the next image of the row, or `<img>path</img>`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune.errors import RowError
from llmtune.types import Conversation, Media

if TYPE_CHECKING:
    from datasets import Dataset


MARK = re.compile(r"<image>|<img>(.*?)</img>", re.DOTALL)


def count_marks(conversation: Conversation) -> int:
    """Count the marks in user messages. In an assistant message or a system prompt a mark is plain text."""
    return sum(len(MARK.findall(turn.content)) for turn in conversation.turns if turn.role == "user")


def split_marks(question: str, *, joins_line: bool = False) -> Iterator[str | None]:
    """Split a question into its texts, with None for each mark.

    Args:
        joins_line: The image's placeholder ends its line, so a line break after the mark is not a second one.
    """
    position = 0
    for match in MARK.finditer(question):
        if match.start() > position:
            yield question[position : match.start()]
        yield None
        position = match.end()
        if joins_line and question.startswith("\n", position):
            position += 1
    if position < len(question):
        yield question[position:]


def with_all_marks(conversation: Conversation) -> Conversation:
    """Give every image a mark: images that no question names come before the first question.

    Raises:
        RowError: There are more marks than images, or no question.
    """
    marks, images = count_marks(conversation), len(conversation.media)
    if marks == images:
        return conversation
    if marks > images:
        raise RowError(f"its user messages have {marks} image marks (<image>), and it has {images} images")
    first = next((place for place, one in enumerate(conversation.messages) if one.role == "user"), None)
    if first is None:
        raise RowError(f"it has {images} images and no user message that could hold them")
    messages = list(conversation.messages)
    messages[first] = replace(messages[first], content="<image>" * (images - marks) + messages[first].content)
    return replace(conversation, messages=tuple(messages))


def with_own_marks(question: str, images: Sequence[str]) -> tuple[str, list[str]]:
    """Return a question with a mark for each image listed beside it, and the images that `<image>` refers to.

    Images that it does not name come first.
    """
    marks = _marks_of([question])
    if len(marks) == len(images) and all(map(_fits, marks, images)):
        return question, [image for mark, image in zip(marks, images, strict=True) if mark is None]
    return "<image>" * (len(images) - marks.count(None)) + question, list(images)


def named_images(questions: Iterable[str], given: Sequence[str]) -> tuple[Media, ...]:
    """Return the images of a row, in the order of their marks.

    Args:
        given: The images column: all images, or those that `<image>` refers to.

    Raises:
        RowError: The questions name images by path, and the column does not fill the other marks.
    """
    paths = _marks_of(questions)
    if not any(paths) or (len(given) == len(paths) and all(map(_fits, paths, given))):
        return tuple(map(Media, given))
    if len(given) != paths.count(None):
        raise RowError(f"its contents have {len(paths)} image marks, and its images column has {len(given)}")
    rest = iter(given)
    return tuple(Media(next(rest) if path is None else path) for path in paths)


def _marks_of(questions: Iterable[str]) -> list[str | None]:
    """Return the path that each mark names; None for `<image>`."""
    marks = [match.group(1) for question in questions for match in MARK.finditer(question)]
    return [path if path is None else path.strip() for path in marks]


def _fits(mark: str | None, image: str) -> bool:
    """Return whether an image may be that of a mark. A loaded row has its absolute path, the text the original one."""
    if mark is None or mark == image:
        return True
    if is_address(mark) or not os.path.isabs(image):
        return False
    below = [part for part in os.path.normpath(mark).split(os.sep) if part not in ("..", ".", "~")]
    return os.path.normpath(image).split(os.sep)[-len(below) :] == below


def with_talk_images(conversation: Conversation) -> Conversation:
    """Return a typed conversation; its images are those that its questions name by path."""
    questions = [turn.content for turn in conversation.turns if turn.role == "user"]
    return replace(conversation, media=named_images(questions, ()))


def any_images(dataset: Dataset) -> bool:
    """Return whether the table has images, whatever rows are selected from it."""
    return any(len(batch.column(0).flatten()) for batch in dataset.data.table.select(["images"]).to_batches())


def is_address(image: str) -> bool:
    """Return whether an image is given as a URL or as bytes."""
    return "://" in image or image.startswith("data:")


def with_image_folder(dataset: Dataset, folder: Path | None) -> Dataset:
    """Make relative image paths absolute, from the folder of the data file; the fingerprint stays what it was.

    No row is copied: only the images column is rebuilt, in memory.
    """
    import datasets
    import pyarrow as pa

    table: Any = dataset.data.table
    column = table.column("images").combine_chunks()
    if folder is None or not len(column.values):
        return dataset
    paths = column.values.to_pylist()
    absolute = [path if path is None else _absolute(path, folder) for path in paths]
    if absolute == paths:
        return dataset
    images = pa.ListArray.from_arrays(column.offsets, pa.array(absolute, pa.string()))
    place = table.schema.get_field_index("images")
    # upstream: datasets 5.2.0 datasets/arrow_dataset.py: a fingerprint has no public name
    return datasets.Dataset(table.set_column(place, "images", images), fingerprint=dataset._fingerprint)


def _absolute(path: str, folder: Path) -> str:
    return path if is_address(path) else os.path.abspath(folder / os.path.expanduser(path))
