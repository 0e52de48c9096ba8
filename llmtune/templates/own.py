"""`--template_type auto`: render with the tokenizer's own chat template, and find the trainable text in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from llmtune.errors import TemplateError, UsageError
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.own_render import PROBES, SENTINEL, Renderer, Stop, closed_thought, find_stop, turn_behind
from llmtune.templates.parity import checked_kwargs
from llmtune.templates.pieces import Piece
from llmtune.templates.template import single_answer, trainable_answers
from llmtune.templates.thoughts import ThoughtMarks, marks_in
from llmtune.templates.vetted import vetted
from llmtune.types import Conversation, Message, ToolCall

QUESTION, ANSWER = Message("user", "Hello"), Message("assistant", SENTINEL)
NEXT = "A further turn of 8 words, no more."
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
CALL = Message("assistant", "", tool_calls=(ToolCall("weather", {"place": SENTINEL}),))

_VETTED: set[tuple[str, str]] = set()


@dataclass(frozen=True, slots=True)
class _Answer:
    """Position of a response in `text`, the conversation up to it and with it. The model writes text[start:]."""

    text: str
    start: int

    @property
    def end(self) -> int:
        return len(self.text)


class OwnTemplate(ChatTemplate):
    """The tokenizer's own chat template.

    The text after the prompt that a server would feed, up to the stop token, is trainable. It is searched in the whole
    text, turn by turn; where the text before a response changes as turns are added, each response becomes a sample of
    its own.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not getattr(self.tokenizer, "chat_template", None):
            raise UsageError(
                f"The template {self.name!r} is the tokenizer's own, and this tokenizer has none. "
                "Choose another --template_type (llmtune list templates)."
            )
        self._renderer = Renderer(self.tokenizer)
        self._vet()
        probe = self._render(Conversation((QUESTION, ANSWER)))
        self._stop = self._find_stop(Conversation((QUESTION, ANSWER)), Message("user", NEXT))
        self._call_stop = self._stop
        if "tool_calls" in self._renderer.source:
            called = Conversation((QUESTION, CALL), (TOOL,))
            self._call_stop = self._find_stop(called, Message("tool", NEXT, name="weather")) or self._stop
        self._frame = self._find_frame(probe)

    def _vet(self) -> None:
        """Try the template with these variables once in a process of its own: it is third-party code."""
        key = (self._renderer.source, repr(sorted(self.template_kwargs.items())))
        if key not in _VETTED:
            vetted(lambda: [self._tried(row, asks) for row in PROBES.values() for asks in (False, True)])
            _VETTED.add(key)

    def _tried(self, row: Conversation, asks: bool) -> str | None:
        try:
            return self._render(replace(row, messages=row.messages[:-1]) if asks else row, asks=asks)
        except TemplateError:
            return None

    def pieces(self, conversation: Conversation, *, generation: bool = False) -> list[Piece]:
        if generation:
            turns = conversation.messages
            asked = turns[:-1] if turns and turns[-1].role == "assistant" else turns
            prompt = self._render(replace(conversation, messages=asked), asks=True)
            return self._cut(prompt, [], conversation)
        if len(conversation.turns) == 1 and conversation.turns[0].role == "assistant":  # plain text, no question
            text = conversation.turns[0].content
            stop = Piece(("eos_token_id",), trainable=True, turn=0, weight=conversation.turns[0].weight)
            return [replace(stop, content=text, from_data=True), stop]
        if self.loss_on == "everything":
            last = self._answer(conversation, len(conversation.turns) - 1)
            return [replace(piece, trainable=True, weight=1.0) for piece in self._cut(last.text, [], conversation)]
        found = {turn: self._answer(conversation, turn) for turn in trainable_answers(conversation)}
        if not found:
            return self._cut(self._render(conversation), [], conversation)
        last_turn = max(found)
        spans = [(answer.start, answer.end, turn) for turn, answer in found.items()]
        pieces = self._cut(found[last_turn].text, spans, conversation)
        if self._stop_of(conversation.turns[last_turn]) is None:  # the template writes none: the tokenizer's ends it
            weight = conversation.turns[last_turn].weight
            pieces.append(Piece(("eos_token_id",), trainable=True, turn=last_turn, weight=weight))
        return pieces

    def pieces_behind_calls(self, called: Conversation, results: Sequence[Message]) -> tuple[list[Piece], list[Piece]]:
        # Earlier turns may be written differently once others follow: the stand-in of the call is what is found again.
        last = called.messages[-1]
        calls = tuple(replace(call, arguments={"at": SENTINEL}) for call in last.tool_calls)
        messages = (*called.messages[:-1], replace(last, content="", tool_calls=calls), *results)
        text = self._render(replace(called, messages=messages), asks=True)
        _, found, after = text.rpartition(SENTINEL)
        stop = self._call_stop
        if not found or (stop is not None and stop.text not in after):
            raise TemplateError("the tokenizer's chat template writes calls where their end cannot be found")
        if stop is None:
            raise TemplateError("the tokenizer's chat template ends no call, so results have no place behind it")
        return [Piece(stop.text)], self._cut(after.partition(stop.text)[2], [], Conversation(tuple(results)))

    def _check_kwargs(self) -> None:
        try:
            checked_kwargs(self.template_kwargs)
        except TemplateError as err:
            raise UsageError(f"--chat_template_kwargs: {err}.") from None

    @property
    def answer_frame(self) -> tuple[str, str]:
        return self._frame

    @property
    def thought_marks(self) -> ThoughtMarks | None:
        return marks_in(self._renderer.source)

    @property
    def stop_token_ids(self) -> list[int]:
        own = [token for stop in self._stops() for token in self._single_token(stop.text)]
        return list(dict.fromkeys([self.tokenizer.eos_token_id, *own]))

    @property
    def stop_strings(self) -> list[str]:
        return list(dict.fromkeys(stop.text for stop in self._stops() if not self._single_token(stop.text)))

    def _stops(self) -> list[Stop]:
        return [stop for stop in (self._stop, self._call_stop) if stop is not None]

    def _stop_of(self, message: Message) -> Stop | None:
        return self._call_stop if message.tool_calls else self._stop

    def _samples_of(self, conversation: Conversation) -> list[Conversation]:
        trainable = trainable_answers(conversation)
        if self.loss_on == "everything" or not trainable or trainable == [len(conversation.turns) - 1]:
            return [conversation]
        try:
            answers = [self._answer(conversation, turn) for turn in trainable]
        except TemplateError:  # raised again when the pieces are made
            return [conversation]
        whole = answers[-1].text
        if self._stop is not None and all(whole.startswith(one.text) for one in answers):
            return [conversation]
        return [single_answer(conversation, turn) for turn in trainable]

    def _answer(self, conversation: Conversation, turn: int) -> _Answer:
        upto = single_answer(conversation, turn)
        message = upto.messages[-1]
        text = self._render(upto)
        question = replace(upto, messages=upto.messages[:-1])
        prompt = self._render(question, asks=True)
        stop, marks = self._stop_of(message), self.thought_marks
        if text.startswith(prompt):
            written = text[len(prompt) :]
        else:
            plain = self._render(replace(upto, messages=(*question.messages, ANSWER)))
            written = turn_behind(prompt, text, plain, message, marks, question=self._render(question))
        if stop is None:
            written = written.rstrip()
        elif not stop.written:
            written += stop.text
        else:
            end = written.rfind(stop.text)
            written = written if end < 0 else written[: end + len(stop.text)]
        if marks is not None and marks.is_open(prompt) and marks.close not in written:
            written = closed_thought(message, written, marks)
        return _Answer(prompt + written, len(prompt))

    def _find_frame(self, text: str) -> tuple[str, str]:
        """White space that the template writes around a response; an empty thought before it is the model's text."""
        prompt = self._render(Conversation((QUESTION,)), asks=True)
        if not text.startswith(prompt):
            return "", ""
        before, _, tail = text[len(prompt) :].partition(SENTINEL)
        after = "" if self._stop is None or not self._stop.written else tail.partition(self._stop.text)[0]
        return before if before.isspace() else "", after if after.isspace() else ""

    def _find_stop(self, answered: Conversation, following: Message) -> Stop | None:
        try:
            text = self._render(answered)
        except TemplateError:
            return None
        try:
            further = self._render(replace(answered, messages=(*answered.messages, following)))
        except TemplateError:  # a single-turn template, for instance
            further = text
        last = text.rpartition(SENTINEL)[2] if SENTINEL in text else ""
        followed = further.rpartition(SENTINEL)[2].partition(NEXT)[0]
        eos = self.tokenizer.eos_token
        control = [t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special and t.content]
        control += [eos] if eos and eos not in control else []
        return find_stop(last, followed, control, eos=eos, bos=self.tokenizer.bos_token)

    def _render(self, conversation: Conversation, *, asks: bool = False) -> str:
        kwargs = {**self.template_kwargs, **conversation.template_kwargs}
        return self._renderer.render(replace(conversation, template_kwargs=kwargs), system=self.system, asks=asks)

    def _cut(self, text: str, trainable: list[tuple[int, int, int]], conversation: Conversation) -> list[Piece]:
        """Split the text into pieces: trainable text, and contents that contain a control token's spelling."""
        contents = [
            part
            for message in conversation.messages
            for part in (message.reasoning, message.content)
            if part is not None
        ]
        data = self._encoder.control_spans(text, contents)
        borders = sorted({0, len(text), *(at for start, end, _ in trainable for at in (start, end)), *sum(data, ())})
        turn_at = _Spans(trainable)
        data_at = _Spans([(start, end, 0) for start, end in data])
        pieces = []
        for start, end in pairwise(borders):
            turn, from_data = turn_at(start), data_at(start) is not None
            weight = 1.0 if turn is None else conversation.turns[turn].weight
            pieces.append(Piece(text[start:end], turn is not None, from_data, turn, weight=weight))
        return pieces


class _Spans:
    """Look-up of the span that contains a position; positions are given from left to right."""

    def __init__(self, spans: list[tuple[int, int, int]]) -> None:
        self.spans = sorted(spans)
        self.place = 0

    def __call__(self, at: int) -> int | None:
        while self.place < len(self.spans) and self.spans[self.place][1] <= at:
            self.place += 1
        found = self.spans[self.place] if self.place < len(self.spans) else None
        return found[2] if found is not None and found[0] <= at else None
