"""The merges of a byte pair encoding of which only the ranks of its tokens are known."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TypeVar

__all__ = ["merges_of"]

Token = TypeVar("Token", str, bytes)


def merges_of(ranks: Mapping[Token, int]) -> list[tuple[Token, Token]]:
    """The one pair that each token is merged from, in the order of the ranks.

    An encoder by ranks joins, over and over, the neighbours whose concatenation has the lowest rank. Inside the
    span of text that becomes a token no step reaches over its ends, so the steps are those that the token alone
    would take, and the last of them joins one pair that can be computed here. Tokens that no steps lead to have none.
    """
    found = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pair = _last_pair(token, ranks)
        if pair is not None and pair[0] in ranks and pair[1] in ranks:
            found.append(pair)
    return found


def _last_pair(token: Token, ranks: Mapping[Token, int]) -> tuple[Token, Token] | None:
    parts = [token[at : at + 1] for at in range(len(token))]
    none = len(ranks)
    while len(parts) > 2:
        order = [ranks.get(left + right, none) for left, right in pairwise(parts)]
        lowest = min(order)
        if lowest == none:
            return None
        at = order.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None
