"""Fast tokenizers without the Python copy of their vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType
from typing import Any

COPIES = ("_vocab", "_merges")


def drop_copies(tokenizer: Any) -> None:
    """Drop what a fast tokenizer was built from, 40 MiB of a vocabulary of 150,000; the Rust tokenizer has its own.

    What a method of the tokenizer reads later stays.
    """
    if getattr(tokenizer, "is_fast", False):
        for name in COPIES:
            if name in vars(tokenizer) and not _is_read(type(tokenizer), name):
                # upstream: transformers 5.23.0 transformers/models/qwen2/tokenization_qwen2.py: keeps both for good
                delattr(tokenizer, name)


def _is_read(cls: type, name: str) -> bool:
    """Return whether a method other than the constructor uses an attribute."""
    return any(name in code.co_names for base in cls.__mro__ for code in _methods(base))


def _methods(cls: type) -> Iterator[CodeType]:
    for name, value in vars(cls).items():
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if name != "__init__" and isinstance(code := getattr(function, "__code__", None), CodeType):
            yield from _with_nested(code)


def _with_nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_nested(constant)
