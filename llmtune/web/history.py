"""The conversation on the page, and those of all visitors: a reload or a second window finds its own by an id."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace

from llmtune.data.image_marks import MARK, with_all_marks
from llmtune.types import Conversation, Media, Message

MAX_CONVERSATIONS = 200
MAX_CHARACTERS = 8_000_000
"""Limits of all conversations together; beyond, the one that was not opened for the longest time goes."""


@dataclass
class Turn:
    """A question, and the response of each model. `stopped`: models whose generation was interrupted."""

    question: str
    images: tuple[str, ...] = ()
    answers: dict[str, str] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)
    writers: dict[str, object] = field(default_factory=dict)
    """The generation in progress of each model. A newer one, of a reloaded page, takes its place."""

    def size(self) -> int:
        return len(self.question) + sum(map(len, self.answers.values()))


@dataclass
class ChatHistory:
    """Conversation. Each model's history has its own responses; where it has none, those that the page shows first."""

    turns: list[Turn] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    """Models whose response to the last question is to be generated, or generated anew after an interruption."""

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
            self.turns[-1] = replace(self.turns[-1], answers={}, stopped=set(), writers={})

    def stop(self) -> None:
        """End the generations in progress; what they have written stays."""
        if self.turns:
            turn = self.turns[-1]
            for name in self.unfinished:
                turn.answers.setdefault(name, "")
                turn.stopped.add(name)
            turn.writers.clear()
        self.unfinished = []

    def size(self) -> int:
        return sum(turn.size() for turn in self.turns)


@dataclass
class Visit:
    """A conversation under its id. `browser`: that in which the access key was typed, if one is needed."""

    history: ChatHistory = field(default_factory=ChatHistory)
    browser: bytes | None = None


class Conversations:
    """The conversations of one page process, in memory only. An id is a secret: it is made here, never by a visitor."""

    def __init__(self, *, max_number: int = MAX_CONVERSATIONS, max_characters: int = MAX_CHARACTERS) -> None:
        self.max_number = max_number
        self.max_characters = max_characters
        self._lock = threading.Lock()
        self._visits: OrderedDict[str, Visit] = OrderedDict()

    def find(self, key: str | None) -> Visit | None:
        with self._lock:
            return None if key is None else self._visits.get(key)

    def open(self, key: str | None) -> tuple[str, Visit]:
        """Return the conversation of an id, or a new one under a new id where there is none."""
        with self._lock:
            if key is None or key not in self._visits:
                key = secrets.token_urlsafe(16)
                self._visits[key] = Visit()
            self._visits.move_to_end(key)
            self._trim()
            return key, self._visits[key]

    def __len__(self) -> int:
        return len(self._visits)

    def _trim(self) -> None:
        """Remove the oldest until the limits hold; the one in use stays."""
        total = sum(visit.history.size() for visit in self._visits.values())
        while len(self._visits) > 1 and (len(self._visits) > self.max_number or total > self.max_characters):
            _, oldest = self._visits.popitem(last=False)
            total -= oldest.history.size()


def browser_token(cookie: str | None) -> bytes | None:
    """Return the random bytes by which Streamlit knows a browser, from its cookie: `2|mask|masked bytes|time`."""
    try:
        _, mask, masked, _ = (cookie or "").strip("\"'").split("|")
        key, data = bytes.fromhex(mask), bytes.fromhex(masked)
    except ValueError:
        return None
    return bytes(byte ^ key[place % len(key)] for place, byte in enumerate(data)) if key and data else None
