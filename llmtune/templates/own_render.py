"""Render rows with a tokenizer's own chat template, in the forms that such templates expect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from llmtune.errors import TemplateError
from llmtune.templates.parity import checked_kwargs, thought_keys, upstream_messages
from llmtune.templates.thoughts import THINK, ThoughtMarks
from llmtune.templates.tools.info import to_json
from llmtune.types import Conversation, Json, Message, ToolCall

SENTINEL = "An answer of 7 words, no more."


class Renderer:
    """Renderer of one tokenizer's chat template.

    Most templates write the arguments of a call as JSON and expect them parsed, as servers pass them; DeepSeek-V3's
    concatenates texts and expects the JSON. Mistral's require ids of nine characters.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.source = _source(tokenizer)
        self._thoughts_as = thought_keys(self.source)

    def render(self, conversation: Conversation, *, system: str | None = None, asks: bool = False) -> str:
        """Return the text of a conversation; with `asks`, with the generation prompt.

        Raises:
            TemplateError: The template refuses the row, in each of the forms.
        """
        has_calls = any(message.tool_calls for message in conversation.messages)
        has_ids = any(
            message.tool_call_id or any(c.id for c in message.tool_calls) for message in conversation.messages
        )
        forms = [(True, True)]
        if has_calls:
            forms.append((False, True))
        if has_ids:
            forms += [(parsed, False) for parsed, _ in tuple(forms)]
        first: TemplateError | None = None
        for parsed, own_ids in forms:
            try:
                text, shown = self._apply(conversation, system, asks, parsed=parsed, own_ids=own_ids)
            except TemplateError as err:
                first = first or err
                continue
            if parsed and any(str(value) in text and to_json(value) not in text for value in shown):
                continue  # written into the text as Python repr: this template expects JSON
            return text
        raise first or TemplateError(
            "the tokenizer's chat template writes the arguments of calls as Python, not as JSON"
        )

    def _apply(
        self, conversation: Conversation, system: str | None, asks: bool, *, parsed: bool, own_ids: bool
    ) -> tuple[str, list[Mapping[str, Json]]]:
        """Return the text, and the arguments that were given as objects."""
        messages = upstream_messages(conversation, system=system, thoughts_as=self._thoughts_as, own_ids=own_ids)
        objects: list[Mapping[str, Json]] = []
        for message in messages:
            for call in message.get("tool_calls", ()):
                function = call["function"]
                function["arguments"] = _parsed(function["arguments"]) if parsed else _as_text(function["arguments"])
                if parsed and isinstance(function["arguments"], Mapping) and function["arguments"]:
                    objects.append(function["arguments"])
        kwargs = checked_kwargs(conversation.template_kwargs)
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tools=list(conversation.tools) or None, tokenize=False, add_generation_prompt=asks, **kwargs
            )
        except MemoryError:
            raise
        except Exception as err:  # a template may raise anything for a conversation that it refuses
            raise TemplateError(f"the tokenizer's chat template refuses the row: {err}") from err
        return str(text), objects


def _source(tokenizer: Any) -> str:
    """Return the Jinja source of a tokenizer: all of its templates where it has several."""
    found = tokenizer.chat_template
    return "\n".join(map(str, found.values())) if isinstance(found, Mapping) else str(found)


def _parsed(arguments: Json) -> Json:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def _as_text(arguments: Json) -> str:
    return arguments if isinstance(arguments, str) else to_json(arguments)


# Responses that continue the served prompt, where the template's own text begins differently


def turn_behind(
    prompt: str, text: str, plain: str, message: Message, marks: ThoughtMarks | None, *, question: str
) -> str:
    """Return the assistant turn, and the template's text after it, as continuations of `prompt`.

    Args:
        text: The conversation with the response.
        plain: The same with SENTINEL as the response: the text before it is the head of the turn.
        question: The conversation without the response and without a generation prompt.

    Raises:
        TemplateError: The turn cannot be found in the text, or it has a thought and the prompt has closed it.
    """
    marks = marks or THINK
    turn = _turn(prompt, text, plain, marks, question)
    opening = marks.opening_of(prompt)
    if turn.startswith(opening):
        return turn[len(opening) :]
    if marks.close in opening:
        return _behind_closed(turn, marks)
    return _behind_open(opening, turn, message, marks)


def closed_thought(message: Message, written: str, marks: ThoughtMarks) -> str:
    """Return a response whose template does not end the thought that its prompt opened."""
    thought = message.reasoning or ""
    return f"{thought}\n{marks.close}\n\n{written.lstrip(chr(10))}"


def _turn(prompt: str, text: str, plain: str, marks: ThoughtMarks, question: str) -> str:
    """Return the template's text of the response after the head of its turn, to the end of the text."""
    head, found, _ = plain.rpartition(SENTINEL)
    if not found:
        raise TemplateError("the tokenizer's chat template drops the last response of this row")
    head = head.removesuffix(marks.opening_of(head))
    if text.startswith(head):
        return text[len(head) :]
    # Texts and calls begin differently; the head is what a prompt adds to the question.
    asked = prompt.removesuffix(marks.opening_of(prompt))
    added = asked[len(question) :] if asked.startswith(question) else ""
    common = common_start(text, plain)
    _, found, after = common.rpartition(added) if added else ("", "", "")
    if not found:
        raise TemplateError(
            "the tokenizer's chat template writes this response where it cannot be separated from its prompt"
        )
    return after + text[len(common) :]


def _behind_closed(turn: str, marks: ThoughtMarks) -> str:
    """Continue a prompt that ends with an empty thought, or with the end of a thought."""
    rest = turn.removeprefix(marks.open).lstrip()
    if rest.startswith(marks.close):  # the template writes the empty thought with other white space
        return rest[len(marks.close) :].lstrip("\n")
    if turn.startswith(marks.open):
        raise TemplateError(
            "the prompt closes the thought before the response, and the row's response has one; "
            "--chat_template_kwargs (or the row's chat_template_kwargs) enables thoughts where the template has a "
            "variable for them"
        )
    return turn


def _behind_open(opening: str, turn: str, message: Message, marks: ThoughtMarks) -> str:
    """Continue a prompt that opens the thought: the response continues it, if only to end it."""
    gap = opening[len(marks.open) :]
    if turn.startswith(marks.open):  # with other white space after it
        return turn[len(marks.open) :].lstrip("\n") if gap else turn[len(marks.open) :]
    thought, content = message.reasoning, message.content
    if thought is None and content.startswith(marks.open) and marks.close in content:
        # The template drops the thought at the start of the content: continue with the data's text.
        inside, _, answer = content[len(marks.open) :].partition(marks.close)
        blank = answer[: len(answer) - len(answer.lstrip())]
        rest = turn.removeprefix(marks.close).lstrip()
        if rest.startswith(content.strip()):  # kept whole, after the template's own end of a thought
            return rest[len(marks.open) :].removeprefix(gap)
        if rest.startswith(answer.strip()):
            return inside.removeprefix(gap) + marks.close + blank + rest
    if thought is None and marks.close in content:
        thought = marks.split(content, opened=True)[0]
    thought = thought or ""
    if turn.startswith(marks.close):
        return thought + (gap if thought and not thought.endswith(gap) else "") + turn
    return f"{thought}\n{marks.close}\n\n{turn.lstrip(chr(10))}"


# Conversations that distinguish chat templates: turns, system prompts, white space, scripts, tools, thoughts


QUESTION, ANSWER = Message("user", "What is 1 plus 2?"), Message("assistant", "3.", loss=True)
SYSTEM = Message("system", "Be brief.")
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


def _turns(*contents: str, system: Message | None = None) -> Conversation:
    messages = tuple(
        Message("assistant", content, loss=True) if index % 2 else Message("user", content)
        for index, content in enumerate(contents)
    )
    return Conversation(messages if system is None else (system, *messages))


PROBES: dict[str, Conversation] = {
    "one turn": Conversation((QUESTION, ANSWER)),
    "a system prompt": Conversation((SYSTEM, QUESTION, ANSWER)),
    "two turns": _turns("One?", "Two.", "Three?", "Four."),
    "three turns, a system prompt": _turns("One?", "Two.", "Three?", "Four.", "Five?", "Six.", system=SYSTEM),
    "white space at the ends": _turns(" One?\n", "Two. ", "\n\nThree?", "Four.\n"),
    "an answer that begins with a newline": _turns("One?", "\nTwo."),
    "Chinese and emoji": _turns("你好，请写一首诗。", "床前明月光 🌙", "谢谢", "不客气 👍🏽"),
    "empty contents": _turns("", "Two.", "Three?", ""),
    "thoughts": _turns("One?", "<think>\nHm.\n</think>\n\nTwo.", "Three?", "<think>\nHm!\n</think>\n\nFour."),
    "tools": Conversation(
        (
            QUESTION,
            Message("assistant", "", loss=True, tool_calls=(ToolCall("weather", {"place": "Bergen"}),)),
            Message("tool", '{"sky": "rain"}'),
            Message("assistant", "Rain.", loss=True),
        ),
        tools=(WEATHER,),
    ),
}


# The control token that ends a response


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop token. `written`: it follows the last response; GLM's templates write it only as the next turn's start."""

    text: str
    written: bool = True


def find_stop(last: str, followed: str, control: Sequence[str], *, eos: str | None, bos: str | None) -> Stop | None:
    """Return the token at which a generation stops.

    The text that follows a response both at the end and inside of a conversation is the end of the turn: Command R7B
    closes its response with one control token and the turn with another, Phi-3 ends the whole text with an EOS token.

    Args:
        last: The template's text after the last response.
        followed: Its text between a response and the content of the next turn.
        control: The spellings of the control tokens. Other added tokens, such as `</tool_call>`, are no stop tokens.
    """
    both = common_start(last, followed)
    for tail in (both, last):
        found = _in_order(tail, control)
        if found:
            return Stop(eos if eos in found else found[-1])
    rest = followed[len(both) :].lstrip()
    first = max((token for token in control if rest.startswith(token) and token != bos), key=len, default=None)
    return None if first is None else Stop(first, written=False)


def _in_order(text: str, control: Sequence[str]) -> list[str]:
    """Return the control tokens in a text; of those that begin at one position, the longest."""
    found: dict[int, str] = {}
    for token in control:
        at = text.find(token)
        while at >= 0:
            found[at] = max(found.get(at, ""), token, key=len)
            at = text.find(token, at + len(token))
    return [found[at] for at in sorted(found)]


def common_start(one: str, other: str) -> str:
    """Return the common prefix."""
    return one[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))]
