"""Micro-batches of sampled responses: dealt out whole, and each token with its own numbers, in any layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmtune.rollouts.experience import Group, Response
from llmtune.samples.collate import PackingCollator, PaddingCollator
from llmtune.samples.comparisons import ComparisonCollator
from llmtune.samples.rollouts import COUNTS, RolloutCollator, micro_batches, split_by_response
from llmtune.training.policy import has_responses, response_numbers


def response(ids: list[int], start: float = 0.0, sampled: list[bool] | None = None) -> Response:
    mask = np.array(sampled or [True] * len(ids))
    numbers = (start + np.arange(mask.sum())).astype(np.float32)
    return Response(np.array(ids, np.int32), mask, old=numbers, advantages=-numbers, engine=numbers - 1)


def group(number: int, prompt: list[int], *responses: Response) -> Group:
    return Group(number, number, np.array(prompt, np.int32), list(responses))


GROUPS = [
    group(0, [1, 2, 3], response([11, 12], 0.0), response([13, 14, 15, 16], 10.0)),
    group(1, [4, 5], response([21, 22, 23], 20.0, [True, False, True])),
]
COLLATORS = {
    "shared": ComparisonCollator(PackingCollator(0, flat=True), shares_prompt=True),
    "padded": ComparisonCollator(PaddingCollator(0)),
    "packed": ComparisonCollator(PackingCollator(0, flat=True, with_segments=True)),
}


@pytest.mark.parametrize("layout", COLLATORS)
def test_each_sampled_token_has_its_numbers_in_any_layout(layout):
    parts = [(one, one.responses) for one in GROUPS]
    batch = RolloutCollator(COLLATORS[layout], 0)(parts, (3.0, 8.0))
    labels = batch["labels"][:, 1:]
    sampled = labels[labels != -100]
    assert sampled.tolist() == [11, 12, 13, 14, 15, 16, 21, 23]
    assert batch["old"].tolist() == [0, 1, 10, 11, 12, 13, 20, 21]
    assert (batch["advantages"] == -batch["old"]).all()
    assert torch.allclose(batch["correction"], torch.full((8,), np.e, dtype=torch.float32))
    assert response_numbers(batch).tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    assert batch[COUNTS].tolist() == [3, 8]
    assert "values" not in batch
    split = split_by_response(batch["old"], parts)
    assert [one.tolist() for one in split] == [[0, 1], [10, 11, 12, 13], [20, 21]]


@pytest.mark.parametrize("layout", COLLATORS)
def test_a_batch_without_responses_is_one_token_without_a_label(layout):
    batch = RolloutCollator(COLLATORS[layout], 0)([], (0.0, 0.0))
    assert batch["input_ids"].shape == (1, 1)
    assert not has_responses(batch)
    assert not response_numbers(batch).numel()


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    size=st.integers(1, 9),
    ranks=st.integers(1, 3),
)
def test_all_responses_are_dealt_once_and_groups_stay_together_where_they_can(sizes, size, ranks):
    groups: list[Any] = [
        group(n, [1], *(response([n * 10 + k]) for k in range(count))) for n, count in enumerate(sizes)
    ]
    parts = [(one, one.responses) for one in groups]
    count = -(-sum(sizes) // (size * ranks))
    dealt = micro_batches(parts, size=size, count=count, ranks=ranks)
    assert [len(own) for own in dealt] == [count] * ranks
    found = [int(one.ids[0]) for own in dealt for batch in own for _, responses in batch for one in responses]
    assert sorted(found) == sorted(int(one.ids[0]) for part in groups for one in part.responses)
    batches = [batch for own in dealt for batch in own]
    assert all(sum(len(responses) for _, responses in batch) <= size for batch in batches)
    if len(set(sizes)) == 1 and size % sizes[0] == 0:  # as runs have them
        assert all(len(responses) == sizes[0] for batch in batches for _, responses in batch)
