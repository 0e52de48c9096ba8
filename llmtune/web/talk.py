"""The talk that the page shows: questions, and the answer of each model beside the others."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from llmtune.data.image_marks import MARK, with_all_marks
from llmtune.types import Conversation, Message

__all__ = ["Talk", "Turn"]


@dataclass
class Turn:
    """A question, and what each model wrote. `stopped`: the models whose answer was broken off."""

    question: str
    images: tuple[str, ...] = ()
    answers: dict[str, str] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)


@dataclass
class Talk:
    """Every model is given its own answers as the talk so far; where it has none, those that the page shows first."""

    turns: list[Turn] = field(default_factory=list)

    def ask(self, question: str, images: tuple[str, ...] = ()) -> None:
        self.turns.append(Turn(question, images))

    def conversation(self, model: str, *, system: str | None, several_turns: bool) -> Conversation:
        """What `model` is given to answer the last question."""
        turns = self.turns if several_turns else self.turns[-1:]
        messages = [] if system is None else [Message("system", system)]
        images: list[str] = []
        for turn in turns:
            unmarked = len(turn.images) - len(MARK.findall(turn.question))  # the asker may have said where they stand
            messages.append(Message("user", "<image>" * unmarked + turn.question))
            images += turn.images
            if turn is not turns[-1]:
                answer = turn.answers.get(model) or next(iter(turn.answers.values()), "")
                messages.append(Message("assistant", answer))
        whole = Conversation(tuple(messages), images=tuple(images))
        return with_all_marks(whole) if images else whole

    def forget_answers(self) -> None:
        """Let the last question be answered anew."""
        if self.turns:
            self.turns[-1] = replace(self.turns[-1], answers={}, stopped=set())
