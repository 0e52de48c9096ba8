"""Constraints on generated text: a JSON object, or one of several texts followed by a JSON object."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

MAX_DEPTH = 64
MAX_BLANKS = 24  # enough for indentation; more in a row means a degenerate generation
MAX_NUMBER = 40  # characters; Python's own parser refuses very long numbers
BLANKS = " \n\r\t"
WORDS = {"t": "rue", "f": "alse", "n": "ull"}
NUMBER_STEPS = {  # state -> what may follow; states in capitals may end the number
    "-": {"0": "Z", **dict.fromkeys("123456789", "I")},
    "Z": {".": ".", "e": "e", "E": "e"},
    "I": {".": ".", "e": "e", "E": "e", **dict.fromkeys("0123456789", "I")},
    ".": dict.fromkeys("0123456789", "F"),
    "F": {"e": "e", "E": "e", **dict.fromkeys("0123456789", "F")},
    "e": {"+": "s", "-": "s", **dict.fromkeys("0123456789", "X")},
    "s": dict.fromkeys("0123456789", "X"),
    "X": dict.fromkeys("0123456789", "X"),
}


class Constraint(Protocol):
    """State of a constrained text. Immutable."""

    @property
    def is_complete(self) -> bool:
        """Return whether the text may end here."""

    def after(self, text: str) -> Constraint | None:
        """Return the state after further text; None where that violates the constraint."""


@dataclass(frozen=True, slots=True)
class JsonObject:
    """A JSON object (RFC 8259) and nothing around it.

    Attributes:
        state: The grammar state.
        stack: The brackets that are open, innermost last.
        rest: Remaining characters of a word or an escape, or the state of a number.
        num: Characters so far of a run of blanks or of a number.
    """

    state: str = "start"
    stack: str = ""
    rest: str = ""
    num: int = 0

    @property
    def is_complete(self) -> bool:
        return self.state == "done"

    def after(self, text: str) -> JsonObject | None:
        found = self
        for character in text:
            step = found._step(character)
            if step is None:
                return None
            found = step
        return found

    def _step(self, character: str) -> JsonObject | None:
        if self.state in ("string", "key"):
            return self._in_string(character)
        if self.state == "number":
            return self._in_number(character)
        if self.state == "word":
            if not self.rest.startswith(character):
                return None
            return replace(self, rest=self.rest[1:]) if len(self.rest) > 1 else self._to("after")
        if character in BLANKS:
            within = self.num < MAX_BLANKS and self.state not in ("start", "done")
            return replace(self, num=self.num + 1) if within else None
        return self._between(character)

    def _between(self, character: str) -> JsonObject | None:
        """Consume a character outside of strings, numbers, words and blanks."""
        match self.state, character:
            case "start", "{":
                return self._open(character)
            case ("first key", '"') | ("next key", '"'):
                return self._to("key")
            case "colon", ":":
                return self._to("value")
            case ("first key", "}") | ("first value", "]"):
                return self._close()
            case "after", ",":
                return self._to("next key" if self.stack[-1] == "{" else "value")
            case "after", "}" | "]":
                return self._close() if self.stack[-1] + character in ("{}", "[]") else None
            case "value" | "first value", _:
                return self._begin_value(character)
        return None

    def _begin_value(self, character: str) -> JsonObject | None:
        if character in "{[":
            return self._open(character)
        if character == '"':
            return self._to("string")
        if character in WORDS:
            return self._to("word", WORDS[character])
        if character in "-0123456789":
            return self._to("number", {"-": "-", "0": "Z"}.get(character, "I"))
        return None

    def _open(self, bracket: str) -> JsonObject | None:
        if len(self.stack) >= MAX_DEPTH:
            return None
        state = "first key" if bracket == "{" else "first value"
        return JsonObject(state, self.stack + bracket)

    def _close(self) -> JsonObject:
        return JsonObject("after" if len(self.stack) > 1 else "done", self.stack[:-1])

    def _to(self, state: str, rest: str = "") -> JsonObject:
        return JsonObject(state, self.stack, rest)

    def _in_string(self, character: str) -> JsonObject | None:
        """Consume a character of an escape. `rest`: a backslash, then u with the number of hexadecimal digits left."""
        if self.rest == "\\":
            return self._to(self.state, "uuuu" if character == "u" else "") if character in '"\\/bfnrtu' else None
        if self.rest:
            return self._to(self.state, self.rest[1:]) if character in "0123456789abcdefABCDEF" else None
        if character == '"':
            return self._to("colon" if self.state == "key" else "after")
        if character == "\\":
            return self._to(self.state, "\\")
        return self if character >= " " else None

    def _in_number(self, character: str) -> JsonObject | None:
        step = NUMBER_STEPS[self.rest].get(character)
        if step is not None:
            return replace(self, rest=step, num=self.num + 1) if self.num < MAX_NUMBER else None
        return self._to("after")._step(character) if self.rest.isupper() else None


@dataclass(frozen=True, slots=True)
class ForcedCall:
    """A call of one of some functions.

    Attributes:
        heads: Texts allowed before the arguments, one per function.
        tail: Text after the arguments; a token may end the arguments and begin it.
        written: The part of the head written so far.
        arguments: The arguments, once they have begun.
    """

    heads: tuple[str, ...]
    tail: str = ""
    written: str = ""
    arguments: JsonObject | None = None

    @property
    def is_complete(self) -> bool:
        return self.arguments is not None and self.arguments.is_complete

    def after(self, text: str) -> ForcedCall | None:
        if self.arguments is not None:
            return self._with_arguments(self.arguments, text)
        written = self.written + text
        head = next((head for head in self.heads if written.startswith(head)), None)
        if head is not None:
            return replace(self, written=head)._with_arguments(JsonObject(), written[len(head) :])
        if any(head.startswith(written) for head in self.heads):
            return replace(self, written=written)
        return None

    def _with_arguments(self, arguments: JsonObject, text: str) -> ForcedCall | None:
        for place, character in enumerate(text):
            if arguments.is_complete:
                return replace(self, arguments=arguments) if self.tail.startswith(text[place:]) else None
            step = arguments.after(character)
            if step is None:
                return None
            arguments = step
        return replace(self, arguments=arguments)
