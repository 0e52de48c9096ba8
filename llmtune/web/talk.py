"""The conversation on the page: questions, and the responses of each model side by side."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from llmtune.data.image_marks import MARK, with_all_marks
from llmtune.types import Conversation, Message

__all__ = ["Talk", "Turn"]


@dataclass
class Turn:
    """A question, and the response of each model. `stopped`: models whose generation was interrupted."""

    question: str
    images: tuple[str, ...] = ()
    answers: dict[str, str] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)


@dataclass
class Talk:
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
        whole = Conversation(tuple(messages), images=tuple(images))
        return with_all_marks(whole) if images else whole

    def forget_answers(self) -> None:
        """Regenerate the responses to the last question."""
        if self.turns:
            self.turns[-1] = replace(self.turns[-1], answers={}, stopped=set())
