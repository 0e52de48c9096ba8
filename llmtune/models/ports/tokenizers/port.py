"""Port of a tokenizer, and the folder that it is built from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def read_json(file: Path) -> dict[str, Any]:
    """The content of a file. Empty if there is none or it is not JSON: transformers' own loader says so."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def text_of(token: Any) -> str | None:
    """A token as configurations write it: text, or a mapping with its content."""
    return token.get("content") if isinstance(token, dict) else token
