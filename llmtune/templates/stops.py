"""The control token that ends an answer in a chat template's own words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

__all__ = ["Stop", "common_start", "find_stop"]


@dataclass(frozen=True, slots=True)
class Stop:
    """`written`: it stands behind the last answer. GLM's templates write it as the start of the next turn alone."""

    text: str
    written: bool = True


def find_stop(last: str, followed: str, control: Sequence[str], *, eos: str | None, bos: str | None) -> Stop | None:
    """The token at which a generation stops.

    What stands behind an answer at the end and in the middle of a conversation is the end of the turn: Command R7B
    closes its answer with one control token and the turn with another, Phi-3 ends the whole text with an EOS token.

    Args:
        last: What the template writes behind the last answer.
        followed: What it writes between an answer and the content of the next turn.
        control: The spellings of the control tokens. Other added tokens, `</tool_call>` say, stop nothing.
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
    """The control tokens in a text; of those that begin at one place, the longest."""
    found: dict[int, str] = {}
    for token in control:
        at = text.find(token)
        while at >= 0:
            found[at] = max(found.get(at, ""), token, key=len)
            at = text.find(token, at + len(token))
    return [found[at] for at in sorted(found)]


def common_start(one: str, other: str) -> str:
    """The characters with which both begin."""
    return one[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))]
