"""`--template_type auto`: render with the chat template that the tokenizer carries, and find what is learned in it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from typing import Any

from llmtune.errors import TemplateError, UsageError
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.parity import upstream_messages
from llmtune.templates.pieces import Piece
from llmtune.templates.template import learned_answers, single_answer
from llmtune.types import Conversation, Message

__all__ = ["OwnTemplate"]

SENTINEL = "An answer of 7 words, no more."
PROBE = Conversation((Message("user", "Hello"), Message("assistant", SENTINEL)))


@dataclass(frozen=True, slots=True)
class _Answer:
    """Where an answer stands in `text`, the conversation up to and with it. The model writes text[start:end]."""

    text: str
    start: int
    end: int


class OwnTemplate(ChatTemplate):
    """A chat template in the tokenizer's own words.

    What is learned is what the template writes behind the prompt that a server would feed, up to the stop token. It
    is looked for in the whole text, answer by answer; where the text before an answer changes as turns are added,
    each answer becomes a sample of its own.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not getattr(self.tokenizer, "chat_template", None):
            raise UsageError(
                f"The template {self.name!r} is the tokenizer's own, and this tokenizer carries none. "
                "Choose another --template_type (llmtune list templates)."
            )
        probe = self._render(PROBE)
        self._stop = self._find_stop(probe)
        self._frame = self._find_frame(probe)

    def pieces(self, conversation: Conversation, *, generation: bool = False) -> list[Piece]:
        if generation:
            turns = conversation.messages
            asked = turns[:-1] if turns and turns[-1].role == "assistant" else turns
            prompt = self._render(replace(conversation, messages=asked), asks=True)
            return self._cut(prompt, [], conversation)
        if len(conversation.turns) == 1 and conversation.turns[0].role == "assistant":  # plain text, no question
            text = conversation.turns[0].content
            return [Piece(text, learned=True, from_data=True, turn=0), Piece(("eos_token_id",), learned=True, turn=0)]
        if self.loss_on == "everything":
            last = self._answer(conversation, len(conversation.turns) - 1)
            return [replace(piece, learned=True) for piece in self._cut(last.text[: last.end], [], conversation)]
        found = {turn: self._answer(conversation, turn) for turn in learned_answers(conversation)}
        if not found:
            return self._cut(self._render(conversation), [], conversation)
        last_turn = max(found)
        whole = found[last_turn]
        spans = [(answer.start, answer.end, turn) for turn, answer in found.items()]
        pieces = self._cut(whole.text[: whole.end], spans, conversation)
        if self._stop is None:  # the template writes no stop token: the tokenizer's ends the answer
            pieces.append(Piece(("eos_token_id",), learned=True, turn=last_turn))
        return pieces

    @property
    def answer_frame(self) -> tuple[str, str]:
        return self._frame

    @property
    def stop_token_ids(self) -> list[int]:
        own = [] if self._stop is None else self._single_token(self._stop)
        return list(dict.fromkeys([self.tokenizer.eos_token_id, *own]))

    @property
    def stop_strings(self) -> list[str]:
        return [] if self._stop is None or self._single_token(self._stop) else [self._stop]

    def _samples_of(self, conversation: Conversation) -> list[Conversation]:
        learned = learned_answers(conversation)
        if self.loss_on == "everything" or not learned or learned == [len(conversation.turns) - 1]:
            return [conversation]
        try:
            answers = [self._answer(conversation, turn) for turn in learned]
        except TemplateError:  # told when the pieces are made
            return [conversation]
        whole = answers[-1].text
        if self._stop is not None and all(whole[: one.end] == one.text[: one.end] for one in answers):
            return [conversation]
        return [single_answer(conversation, turn) for turn in learned]

    def _answer(self, conversation: Conversation, turn: int) -> _Answer:
        upto = single_answer(conversation, turn)
        text = self._render(upto)
        prompt = self._render(replace(upto, messages=upto.messages[:-1]), asks=True)
        if not text.startswith(prompt):
            text = prompt + self._behind_other_prompt(prompt, text, upto.messages[-1].content)
        end = -1 if self._stop is None else text.rfind(self._stop, len(prompt))
        if self._stop is None or end < 0:
            return _Answer(text, len(prompt), len(text.rstrip()) if self._stop is None else len(text))
        return _Answer(text, len(prompt), end + len(self._stop))

    def _behind_other_prompt(self, prompt: str, text: str, content: str) -> str:
        """The answer where the template writes another text before it than it feeds for it.

        DeepSeek-R1's opens the thoughts in the prompt and drops them from answers; Mistral-Nemo's writes the system
        text at the question that waits for an answer, and nowhere once that is given.
        """
        opening = prompt[_num_common(text, prompt) :]
        if opening and content.startswith(opening):
            return content[len(opening) :] + (self._stop or "")
        if opening.rstrip().endswith("<think>"):
            return f"\n</think>\n\n{content}{self._stop or ''}"
        at = max(text.rfind(content), text.rfind(content.strip()) if content not in text else -1)
        return text[at:] if at >= 0 else content + (self._stop or "")

    def _find_frame(self, text: str) -> tuple[str, str]:
        """White space that the template writes around an answer; empty thoughts before it are the model's words."""
        prompt = self._render(Conversation(PROBE.messages[:1]), asks=True)
        if not text.startswith(prompt):
            return "", ""
        before, _, tail = text[len(prompt) :].partition(SENTINEL)
        after = "" if self._stop is None else tail.partition(self._stop)[0]
        return before if before.isspace() else "", after if after.isspace() else ""

    def _find_stop(self, text: str) -> str | None:
        """The first control token that the template writes behind an answer."""
        tail = text.rpartition(SENTINEL)[2]
        tokens = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.content]
        found = [(tail.find(token), -len(token), token) for token in tokens if token in tail]
        return min(found)[2] if found else None

    def _render(self, conversation: Conversation, *, asks: bool = False) -> str:
        from jinja2.exceptions import TemplateError as JinjaError

        messages = [_with_parsed_arguments(one) for one in upstream_messages(conversation, system=self.system)]
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tools=list(conversation.tools) or None, tokenize=False, add_generation_prompt=asks
            )
        except (JinjaError, ValueError, TypeError, KeyError) as err:
            raise TemplateError(f"the tokenizer's chat template refuses the row: {err}") from err
        return str(text)

    def _cut(self, text: str, learned: list[tuple[int, int, int]], conversation: Conversation) -> list[Piece]:
        """The text in pieces: what is learned, and contents that hold the spelling of a control token."""
        data = self._encoder.control_spans(text, [message.content for message in conversation.messages])
        borders = sorted({0, len(text), *(at for start, end, _ in learned for at in (start, end)), *sum(data, ())})
        pieces = []
        for start, end in pairwise(borders):
            turn = next((turn for first, last, turn in learned if first <= start < last), None)
            from_data = any(first <= start < last for first, last in data)
            pieces.append(Piece(text[start:end], learned=turn is not None, from_data=from_data, turn=turn))
        return pieces


def _num_common(one: str, other: str) -> int:
    """Characters with which both begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _with_parsed_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """Templates write the arguments of a call as JSON themselves, so they want them parsed."""
    for call in message.get("tool_calls", ()):
        arguments = call["function"]["arguments"]
        if isinstance(arguments, str):
            try:
                call["function"]["arguments"] = json.loads(arguments)
            except ValueError:
                continue
    return message
