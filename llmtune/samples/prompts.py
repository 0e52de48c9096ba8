"""Prompts of a store, and the order in which a run responds to them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmtune.data.canonical import prompt_of
from llmtune.samples.store import TokenStore
from llmtune.types import IGNORE_INDEX, Prompt

if TYPE_CHECKING:
    from datasets import Dataset


class PromptSamples:
    """Places of responses in an epoch, as the trainer counts them; which prompts they respond to, `prompt_at` says.

    Args:
        dataset: The rows that the prompts were encoded from.
        num_places: Responses of an epoch, over all passes; a whole number of optimizer steps.
        response_tokens: Most tokens of a response.
        seed: Of the order of the prompts.
    """

    def __init__(self, store: TokenStore, dataset: Dataset, num_places: int, response_tokens: int, seed: int) -> None:
        self.store = store
        self._dataset = dataset
        self.response_tokens = response_tokens
        self._num_places = num_places
        self._seed = seed
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def prompt_at(self, position: int) -> int:
        """Return the prompt at a position of an endless pass over all of them, in a new order each epoch."""
        epoch, place = divmod(position, len(self.store))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self.store))
        return int(self._order[place])

    def prompt(self, index: int) -> Prompt:
        """Return the row of a prompt."""
        return prompt_of(self._dataset[self.store.row_of(index)])

    def name_of(self, index: int) -> str:
        return f"row {self.store.row_of(index)}"

    def __len__(self) -> int:
        return self._num_places

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {"input_ids": np.zeros(1, np.int32), "labels": np.full(1, IGNORE_INDEX, np.int32)}

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Of the places, which hold nothing themselves."""
        return np.ones(len(self), np.int64)

    @property
    def longest(self) -> NDArray[np.int64]:
        """Most tokens of each prompt with a response."""
        return self.store.lengths + self.response_tokens

    def rows_of(self, index: int) -> list[int]:
        """Return a prompt's place in the store, for messages."""
        return [index]

    @property
    def report(self) -> Any:
        return self.store.report
