"""Templates that make prompts, a few copies of each: a tokenizer cannot be shared by threads.

A short prompt never waits for a long one: these have a copy of their own, one after the other.
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
"""Characters from which on a prompt counts as long: some 20 ms of tokenising."""
NUM_SHORT = 2

_Copies = dict[str | None, ChatTemplate]


class Writers:
    """Copies of the templates of a service, by the adapter's name; templates that share a tokenizer share its copy."""

    def __init__(self, templates: Mapping[str | None, ChatTemplate]) -> None:
        self._short: queue.LifoQueue[_Copies] = queue.LifoQueue()
        self._long: queue.LifoQueue[_Copies] = queue.LifoQueue()
        for place in (*[self._short] * NUM_SHORT, self._long):
            place.put(_copied(templates))

    @contextmanager
    def one(self, adapter: str | None, num_characters: int) -> Iterator[ChatTemplate]:
        """A copy that nobody else uses meanwhile, for a prompt of so many characters."""
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
