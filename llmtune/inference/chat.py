"""Chat in the terminal: streaming, several turns, a few commands."""

from __future__ import annotations

import sys
from typing import Any

from llmtune.data.image_marks import with_talk_images
from llmtune.errors import DataError, TemplateError
from llmtune.inference.engine import Engine
from llmtune.inference.sampling import Sampling
from llmtune.inference.texts import split_answer
from llmtune.types import Conversation, Message

HELP = """Commands: exit, clear (start a new conversation), system (set the system prompt), multi-line (a line `#` ends
a question), single-line. Ctrl-C stops a response.
"""
IMAGE_HELP = "Add an image to a question as <img>path</img>.\n"


def chat(engine: Engine, sampling: Sampling, *, stream: bool = True) -> list[dict[str, Any]]:
    """Answer questions from standard input until `exit` or its end. Return the turns.

    Earlier turns are part of the prompt where the template allows several.
    """
    chat = _Chat(engine, sampling, stream)
    _say(HELP if engine.template.media is None else HELP + IMAGE_HELP)
    while True:
        question = _read(chat.multi_line)
        if question is None or question.strip().lower() in ("exit", "quit"):
            return chat.results
        if not chat.command(question.strip().lower()) and question.strip():
            chat.answer(question)
            _say("-" * 50 + "\n")


class _Chat:
    def __init__(self, engine: Engine, sampling: Sampling, stream: bool) -> None:
        self.engine = engine
        self.sampling = sampling
        self.stream = stream
        self.multi_line = False
        self.turns: list[Message] = []
        self.results: list[dict[str, Any]] = []

    def command(self, word: str) -> bool:
        """Run a command; False where the text is none."""
        if word == "clear":
            self.turns.clear()
            _say("Started a new conversation.\n")
        elif word == "system":
            self._ask_system()
        elif word in ("multi-line", "single-line"):
            self.multi_line = word == "multi-line"
            _say("A line `#` ends a question.\n" if self.multi_line else "Each line is a question.\n")
        else:
            return False
        return True

    def _ask_system(self) -> None:
        if not self.engine.template.info.has_system_slot:
            _say(f"The template {self.engine.template.name} has no slot for a system prompt.\n")
            return
        text = _read(False, prompt="system: ")
        self.engine.template.system = text or None
        self.turns.clear()
        _say(
            "System prompt set; started a new conversation.\n"
            if text
            else "System prompt reset to the template's default; started a new conversation.\n"
        )

    def answer(self, question: str) -> None:
        row = with_talk_images(Conversation((*self.turns, Message("user", question))))
        pieces: list[str] = []
        answers = (
            self.engine.stream(row, self.sampling)
            if self.stream and self.sampling.num_beams == 1
            else self.engine.answer([row], self.sampling)
        )
        try:
            for piece in answers:
                _say(piece)
                pieces.append(piece)
        except KeyboardInterrupt:
            _say(" [stopped]")
        except (DataError, TemplateError) as err:  # an image that is missing or too large
            _say(f"{err}\n")
            return
        finally:
            if hasattr(answers, "close"):
                answers.close()
        _say("\n")
        answer = "".join(pieces)
        history = [[a.content, b.content] for a, b in zip(self.turns[::2], self.turns[1::2], strict=True)]
        template = self.engine.template
        thought, answer = split_answer(answer, template.thought_marks, opened=template.opens_thought(row))
        found = {} if thought is None else {"reasoning_content": thought}
        self.results.append({"query": question, "response": answer, "history": history} | found)
        if template.info.chat_sep is not None:
            self.turns += [Message("user", question), Message("assistant", answer, reasoning=thought)]


def _read(multi_line: bool, *, prompt: str = "<<< ") -> str | None:
    """Return a question, or None at the end of the input."""
    lines: list[str] = []
    while True:
        try:
            line = input("" if lines else prompt)
        except EOFError:
            return "\n".join(lines) if lines else None
        except KeyboardInterrupt:
            _say("\n`exit` leaves.\n")
            lines.clear()
            continue
        if not multi_line:
            return line
        if line.rstrip().endswith("#"):
            return "\n".join([*lines, line.rstrip()[:-1]]).rstrip("\n")
        if not lines and line.strip().lower() in ("exit", "quit", "single-line", "clear"):
            return line
        lines.append(line)


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
