"""The conversation on the page: questions, and the responses of each model side by side."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import streamlit as st

from llmtune.data.image_marks import MARK, with_all_marks
from llmtune.types import Conversation, Media, Message


@dataclass
class Turn:
    """A question, and the response of each model. `stopped`: models whose generation was interrupted."""

    question: str
    images: tuple[str, ...] = ()
    answers: dict[str, str] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)


@dataclass
class Chat:
    """Conversation. Each model's history has its own responses; where it has none, those that the page shows first."""

    turns: list[Turn] = field(default_factory=list)

    def ask(self, question: str, images: tuple[str, ...] = ()) -> None:
        self.turns.append(Turn(question, images))

    def conversation(self, model: str, *, system: str | None, several_turns: bool) -> Conversation:
        """Return the conversation for `model` to answer the last question."""
        turns = self.turns if several_turns else self.turns[-1:]
        messages = [] if system is None else [Message("system", system)]
        images: list[str] = []
        for turn in turns:
            unmarked = len(turn.images) - len(MARK.findall(turn.question))  # the question may contain marks already
            messages.append(Message("user", "<image>" * unmarked + turn.question))
            images += turn.images
            if turn is not turns[-1]:
                answer = turn.answers.get(model) or next(iter(turn.answers.values()), "")
                messages.append(Message("assistant", answer))
        whole = Conversation(tuple(messages), media=tuple(map(Media, images)))
        return with_all_marks(whole) if images else whole

    def forget_answers(self) -> None:
        """Regenerate the responses to the last question."""
        if self.turns:
            self.turns[-1] = replace(self.turns[-1], answers={}, stopped=set())


# Uploaded images: kept while the page runs, and checked before a model receives them


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
