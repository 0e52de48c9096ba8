"""Batches of comparisons: the prompt of each computed once, with its responses as branches; or each response apart.

A branch repeats the last token of the prompt, so that every position has one next token and labels need no exception:

    [prompt without its last token | last token, response 1 | last token, response 2]

The positions of a branch continue those of the prompt, and its attention reads the prompt's keys and its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmtune.models.packed_attention import branches
from llmtune.samples.collate import SAMPLES, PackingCollator, PaddingCollator
from llmtune.samples.packing import plan_packs
from llmtune.samples.store import TokenStore
from llmtune.templates.comparisons import EncodedComparison
from llmtune.types import IGNORE_INDEX, MEDIA_COLUMNS, media_columns

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments

COMPARISONS = "comparisons"
"""Key of the comparisons of an item: one, or those of a pack."""
PAIRS = "pairs"
"""Key of the pairs of a batch, [n, 2]: numbers of the better and of the worse response."""
REFERENCE = "reference"
"""Key of the log-probabilities of the responses under the reference model, [number of responses] in fp32."""
RESPONSES = "responses"
"""Key of the number of the response that each position belongs to, [B, T]; -1 of prompts and padding."""
MARGINS = "margins"
"""Key of the margins of the pairs, [n] in fp32, where the data has any; 0 where it has none."""
GOOD = "good"
"""Key of the labels of the responses, bool [number of responses], where the data has them."""
OWN = (PAIRS, REFERENCE, RESPONSES, MARGINS, GOOD)
"""Keys of a batch that are not inputs of a model."""
NONE = -1
RESPONSES_PER_PACK = 2
"""--max_length limits a prompt with one response; a pack holds that many tokens for each response of a pair."""


def pack_capacity(args: StageArguments) -> int:
    """Return the tokens of a pack; of conversations or comparisons."""
    return args.max_length if args.KIND == "conversations" else RESPONSES_PER_PACK * args.max_length


def stored_comparison(encoded: EncodedComparison) -> dict[str, Any]:
    """Return an encoded comparison as a store gives it."""
    joined = encoded.joined()
    return {
        "input_ids": np.array(joined.input_ids, np.int32),
        "labels": np.array(joined.labels, np.int32),
        "parts": np.array([len(encoded.prompt), *(len(one.input_ids) for one in encoded.responses)], np.int32),
        "ranks": np.array([one.rank for one in encoded.responses], np.int32),
        "label": encoded.responses[0].label,
        "margin": encoded.margin,
        **media_columns(joined.media),
    }


class ComparisonSamples:
    """Comparisons of a store as items of batches, alone or in packs.

    Args:
        capacity: Tokens of a pack, each prompt counted once; None: no packs.
        seed: Each comparison gets one response more, that of another prompt, drawn with this seed; None: its own only.

    Attributes:
        reference: Log-probabilities of the responses under the reference model, one after the other, once known.
    """

    def __init__(self, store: TokenStore, capacity: int | None = None, seed: int | None = None) -> None:
        self.store, self.capacity = store, capacity
        self.reference: NDArray[np.float32] | None = None
        self._partners = None if seed is None else drawn_partners(len(store), seed)
        responses = store.responses()
        self._tokens = store.lengths + responses - 1
        more = 0 if seed is None else 1
        self._starts = np.concatenate([[0], np.cumsum(responses + more)]).astype(np.int64)
        self._packs = [[row] for row in range(len(store))] if capacity is None else self._planned(capacity)

    def _planned(self, capacity: int) -> list[list[int]]:
        packs: dict[int, list[int]] = {}
        largest = max(capacity, int(self._tokens.max()))
        for row, pack in enumerate(plan_packs(self._tokens, largest).tolist()):
            packs.setdefault(pack, []).append(row)
        return [packs[pack] for pack in sorted(packs)]

    def first_response(self, row: int) -> int:
        """Return the number of responses before a row."""
        return int(self._starts[row])

    def __len__(self) -> int:
        return len(self._packs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {COMPARISONS: [self.comparison(row) for row in self._packs[index]]}

    def comparison(self, row: int) -> dict[str, Any]:
        found = self.store[row]
        if self._partners is not None:
            found = with_partner(found, self.store[int(self._partners[row])])
        if self.reference is not None:
            found[REFERENCE] = self.reference[self._starts[row] : self._starts[row + 1]]
        return found

    @property
    def identity(self) -> str:
        """Which responses there are beside those of the store."""
        return "" if self._partners is None else hashlib.blake2b(self._partners.tobytes(), digest_size=8).hexdigest()

    def rows_of(self, index: int) -> list[int]:
        """Return the comparisons of an item, as indices of the store."""
        return self._packs[index]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each item, its prompts counted once."""
        return np.array([int(self._tokens[rows].sum()) for rows in self._packs], np.int64)

    @property
    def num_responses(self) -> int:
        return int(self._starts[-1])

    @property
    def report(self) -> Any:
        return self.store.report


def drawn_partners(size: int, seed: int) -> NDArray[np.int64]:
    """Return another row for each one, drawn at random; its own where there is one row only."""
    order = np.random.default_rng([seed, size]).permutation(size)
    partners = np.empty(size, np.int64)
    partners[order] = np.roll(order, 1)
    return partners


def with_partner(comparison: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return a comparison with one response more: the first one of another comparison."""
    start, size = int(other["parts"][0]), int(other["parts"][1])
    return comparison | {
        "input_ids": np.concatenate([comparison["input_ids"], other["input_ids"][start : start + size]]),
        "labels": np.concatenate([comparison["labels"], other["labels"][start : start + size]]),
        "parts": np.append(comparison["parts"], size),
        "ranks": np.append(comparison["ranks"], comparison["ranks"][-1]),
    }


@dataclass(frozen=True)
class ComparisonCollator:
    """Lays out the responses of comparisons, the best first, and names the pairs that differ in rank.

    Attributes:
        sequences: Makes a batch of sequences: padded, or flat.
        shares_prompt: Each prompt is computed once; needs flat sequences and `varlen` attention.
    """

    sequences: PaddingCollator | PackingCollator
    shares_prompt: bool = False

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        comparisons = [one for item in items for one in item.get(COMPARISONS, ())]
        laid_out = [_branched(one) if self.shares_prompt else _apart(one) for one in comparisons]
        samples = [sample for found in laid_out for sample in found]
        samples += [_filler(item) for item in items if COMPARISONS not in item]
        numbers = _numbered(samples)
        batch: dict[str, Any] = {**self.sequences(samples)}
        batch[RESPONSES] = _padded(numbers, batch["labels"].shape)
        if self.shares_prompt:
            batch |= branches([part for sample in samples for part in sample["branches"]])
        batch |= _ranked(comparisons)
        if "sample" in items[0]:
            batch[SAMPLES] = torch.tensor([item["sample"] for item in items])
        return batch


def _apart(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a sequence for each response, behind the prompt."""
    prompt, responses = _split(comparison)
    media = {column: comparison[column] for column in MEDIA_COLUMNS.values() if column in comparison}
    return [
        {
            "input_ids": np.concatenate([prompt, ids]),
            "labels": np.concatenate([np.full(len(prompt), IGNORE_INDEX, np.int32), labels]),
            "own": [(len(prompt), len(prompt) + len(ids))],
            **media,
        }
        for ids, labels in responses
    ]


def _branched(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one sequence: the prompt, and the responses as branches of it."""
    prompt, responses = _split(comparison)
    trunk, last = prompt[:-1], prompt[-1:]
    ids, labels, positions = [trunk], [np.full(len(trunk), IGNORE_INDEX, np.int32)], [np.arange(len(trunk))]
    at, own, bounds = len(trunk), [], [(len(trunk), 0)] if len(trunk) else []
    for response, targets in responses:
        ids += [last, response]
        labels += [np.full(1, IGNORE_INDEX, np.int32), targets]
        positions.append(len(trunk) + np.arange(1 + len(response)))
        own.append((at + 1, at + 1 + len(response)))
        bounds.append((1 + len(response), len(trunk)))
        at += 1 + len(response)
    return [
        {
            "input_ids": np.concatenate(ids),
            "labels": np.concatenate(labels),
            "position_ids": np.concatenate(positions),
            "own": own,
            "branches": bounds,
        }
    ]


def _filler(item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "own": [], "branches": [(len(item["input_ids"]), 0)]}


def _split(comparison: dict[str, Any]) -> tuple[Any, list[tuple[Any, Any]]]:
    """Return the ids of the prompt, and ids and labels of each response."""
    edges = np.cumsum(comparison["parts"])[:-1]
    prompt, *responses = np.split(comparison["input_ids"], edges)
    return prompt, list(zip(responses, np.split(comparison["labels"], edges)[1:], strict=True))


def _numbered(samples: Sequence[dict[str, Any]]) -> list[NDArray[np.int64]]:
    """Number the responses of a batch: of each sequence, [T], which one a position belongs to."""
    number, found = 0, []
    for sample in samples:
        numbers = np.full(len(sample["input_ids"]), NONE, np.int64)
        for start, end in sample["own"]:
            numbers[start:end] = number
            number += 1
        found.append(numbers)
    return found


def _padded(numbers: Sequence[NDArray[np.int64]], shape: torch.Size) -> torch.Tensor:
    found = torch.full(shape, NONE, dtype=torch.long)
    if shape[0] == 1:
        whole = torch.from_numpy(np.concatenate(numbers))
        found[0, : len(whole)] = whole
        return found
    for row, one in enumerate(numbers):
        found[row, : len(one)] = torch.from_numpy(one)
    return found


def _ranked(comparisons: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the pairs and margins, the labels, and the reference's log-probabilities of a batch's responses."""
    pairs: list[tuple[int, int]] = []
    margins: list[float] = []
    good: list[bool] = []
    start = 0
    for comparison in comparisons:
        ranks = comparison["ranks"].tolist()
        found = [(a, b) for a in range(len(ranks)) for b in range(len(ranks)) if ranks[a] < ranks[b]]
        pairs += [(start + better, start + worse) for better, worse in found]
        margins += [comparison.get("margin") or 0.0] * len(found)
        good += [bool(comparison.get("label"))] * len(ranks)
        start += len(ranks)
    batch = {PAIRS: torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)}
    if any(margins):
        batch[MARGINS] = torch.tensor(margins, dtype=torch.float32)
    if any(one.get("label") is not None for one in comparisons):
        batch[GOOD] = torch.tensor(good)
    known = [one[REFERENCE] for one in comparisons if REFERENCE in one]
    if known or not comparisons:  # of fillers alone there is nothing to compute, which one rank must not do by itself
        batch[REFERENCE] = torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *known]))
    return batch
