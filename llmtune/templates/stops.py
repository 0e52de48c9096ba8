"""Find the control token that ends a response in a tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile


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
