"""Port of a tokenizer, the folder that it is built from, and merges from ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llmtune.utils.files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer


LLAMA_TOKENS: Mapping[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
"""The defaults of LlamaTokenizer and of its copies."""


@dataclass(frozen=True)
class Source:
    """A folder with a tokenizer."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """tokenizer_config.json, over special_tokens_map.json."""
        return read_json(self.folder / "special_tokens_map.json") | read_json(self.folder / "tokenizer_config.json")

    @property
    def class_name(self) -> str:
        """The class that the configuration names; empty if it names none."""
        return str(self.config.get("tokenizer_class") or "").removesuffix("Fast")

    @property
    def needs_code(self) -> bool:
        return "auto_map" in self.config

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()


@dataclass(frozen=True, kw_only=True)
class TokenizerPort:
    """One kind of tokenizer.

    Attributes:
        family: As users call it.
        recognises: Whether a folder holds one.
        files: Those of the folder that `backend` reads, if they are there.
        backend: Makes the tokenizer of the Rust library. Raises ModelError for what that one cannot do.
        defaults: Arguments of the tokenizer where the folder's configuration is silent.
    """

    family: str
    recognises: Callable[[Source], bool]
    files: tuple[str, ...]
    backend: Callable[[Source], Tokenizer]
    defaults: Mapping[str, Any] = field(default_factory=dict)


def text_of(token: Any) -> str | None:
    """A token as configurations write it: text, or a mapping with its content."""
    return token.get("content") if isinstance(token, dict) else token


# The merges of a byte pair encoding of which only the ranks of its tokens are known


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
