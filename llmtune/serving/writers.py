"""Pool of template copies for rendering prompts: threads cannot share a tokenizer.

A short prompt never waits for a long one: long prompts share one copy of their own.
"""

from __future__ import annotations

import copy
import queue
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from llmtune.templates.chat import ChatTemplate

__all__ = ["LONG", "Writers"]

LONG = 20_000
"""Characters from which a prompt counts as long: about 20 ms of tokenising."""
NUM_SHORT = 2

_Copies = dict[str | None, ChatTemplate]


class Writers:
    """Copies of a service's templates, by adapter name; templates with the same tokenizer share its copy."""

    def __init__(self, templates: Mapping[str | None, ChatTemplate]) -> None:
        self._short: queue.LifoQueue[_Copies] = queue.LifoQueue()
        self._long: queue.LifoQueue[_Copies] = queue.LifoQueue()
        for place in (*[self._short] * NUM_SHORT, self._long):
            place.put(_copied(templates))

    @contextmanager
    def one(self, adapter: str | None, num_characters: int) -> Iterator[ChatTemplate]:
        """Borrow a copy for a prompt of this many characters."""
        place = self._long if num_characters >= LONG else self._short
        copies = place.get()
        try:
            yield copies[adapter]
        finally:
            place.put(copies)


def _copied(templates: Mapping[str | None, ChatTemplate]) -> _Copies:
    tokenizers: dict[int, Any] = {}
    for template in templates.values():
        if id(template.tokenizer) not in tokenizers:
            tokenizers[id(template.tokenizer)] = copy.deepcopy(template.tokenizer)
    return {name: template.copy(tokenizers[id(template.tokenizer)]) for name, template in templates.items()}
