"""Micro-batches of sampled responses: layout as of comparisons, with numbers for each sampled token beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmtune.samples.collate import SAMPLES
from llmtune.samples.comparisons import COMPARISONS, ComparisonCollator
from llmtune.samples.comparisons import OWN as OF_COMPARISONS
from llmtune.types import IGNORE_INDEX

if TYPE_CHECKING:
    from llmtune.rollouts.experience import Group, Response

COUNTS = "counts"
"""Key of the responses and tokens that a micro-batch stands for in the totals of its step, [2]: those that cost no
forward pass included."""
PER_TOKEN = ("old", "reference_logps", "advantages", "correction", "values", "returns")
"""Keys of a number for each sampled token, [K]."""
OWN = (COUNTS, SAMPLES, *PER_TOKEN)
Parts = list[tuple["Group", Sequence["Response"]]]
"""Some responses of each of several groups."""
SOURCES = {"reference_logps": "reference"}


@dataclass(frozen=True)
class RolloutCollator:
    """Lays out groups of responses.

    Attributes:
        responses: Makes a batch of comparisons; the responses to a prompt share it, or each has its own.
        pad_token_id: Of the one token of a batch without responses.
    """

    responses: ComparisonCollator
    pad_token_id: int

    def __call__(self, groups: Sequence[tuple[Group, Sequence[Response]]], counts: Sequence[float]) -> dict[str, Any]:
        """Return a batch of the given responses of each group."""
        chosen = [(group, one) for group, responses in groups for one in responses]
        items: list[dict[str, Any]] = [{COMPARISONS: [_comparison(*part)]} for part in groups if part[1]]
        items = items or [{"input_ids": np.array([self.pad_token_id]), "labels": np.array([IGNORE_INDEX])}]
        batch = self.responses(items) | {COUNTS: torch.tensor([round(count) for count in counts])}
        batch[SAMPLES] = torch.tensor([group.prompt for group, part in groups if part], dtype=torch.long)
        for name in PER_TOKEN:
            parts = [part for _, one in chosen if (part := _numbers(one, name)) is not None]
            if chosen and len(parts) == len(chosen):
                batch[name] = torch.from_numpy(np.concatenate(parts).astype(np.float32))
        return batch


def _numbers(response: Response, name: str) -> NDArray[np.float32] | None:
    if name != "correction":
        found: NDArray[np.float32] | None = getattr(response, SOURCES.get(name, name))
        return found
    if response.engine is None or response.old is None:
        return None
    return np.exp(response.old - response.engine)


def _comparison(group: Group, responses: Sequence[Response]) -> dict[str, Any]:
    """Return responses as a comparison without ranks."""
    labels = [np.where(one.sampled, one.ids, IGNORE_INDEX) for one in responses]
    ids = np.concatenate([group.prompt_ids, *(one.ids for one in responses)])
    return {
        "input_ids": ids.astype(np.int32),
        "labels": np.concatenate([np.full(len(group.prompt_ids), IGNORE_INDEX), *labels]).astype(np.int32),
        "parts": np.array([len(group.prompt_ids), *(len(one.ids) for one in responses)], np.int32),
        "ranks": np.zeros(len(responses), np.int32),
        "label": None,
        "margin": None,
    }


def split_by_response(values: Tensor, groups: Sequence[tuple[Any, Sequence[Response]]]) -> list[NDArray[np.float32]]:
    """Split numbers of the sampled tokens of a batch, [K], into those of its responses."""
    sizes = [one.num_sampled for _, responses in groups for one in responses]
    found = values.float().cpu().numpy()
    return np.split(found, np.cumsum(sizes)[:-1]) if sizes else []


def micro_batches(
    groups: Sequence[tuple[Group, Sequence[Response]]], *, size: int, count: int, ranks: int
) -> list[list[list[tuple[Group, Sequence[Response]]]]]:
    """Deal the responses of a step out to the micro-batches of all ranks: [rank][micro-batch].

    Groups stay together as far as `size`, the most responses of a micro-batch, allows. What is empty comes last.
    """
    dealt: list[list[tuple[Group, Sequence[Response]]]] = [[]]
    room = size
    whole = _fits_whole(groups, size, count * ranks)
    for group, responses in groups:
        rest = list(responses)
        if whole and room < len(rest):
            room = 0
        while rest:
            if not room:
                dealt.append([])
                room = size
            dealt[-1].append((group, rest[:room]))
            room, rest = room - len(dealt[-1][-1][1]), rest[room:]
    dealt += [[] for _ in range(count * ranks - len(dealt))]
    return [[dealt[number * ranks + rank] for number in range(count)] for rank in range(ranks)]


def _fits_whole(groups: Sequence[tuple[Any, Sequence[Any]]], size: int, count: int) -> bool:
    """Whether each group can have a place within one micro-batch."""
    bins = 0
    room = 0
    for _, responses in groups:
        if len(responses) > size:
            return False
        if len(responses) > room:
            bins, room = bins + 1, size
        room -= len(responses)
    return bins <= count


def batch_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch without what is not an input of a model."""
    return {name: value for name, value in batch.items() if name not in (*OF_COMPARISONS, *OWN)}
