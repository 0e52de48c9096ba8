"""Reward functions that do not reward the data's own responses are named before anything runs."""

from __future__ import annotations

from llmtune.rewards.functions import load_rewards
from llmtune.rewards.info import register_reward
from llmtune.rewards.inputs import RewardInput
from llmtune.rewards.reference import zero_on_reference
from llmtune.rewards.specs import parse_rewards

REFERENCES = ["Paris.", "<think>a</think>Rome", "Oslo, and a long text of ten words or even more"]
INPUT = RewardInput(
    prompts=["q"] * 3,
    completions=REFERENCES,
    completion_ids=[[1] * 2, [1] * 4, [1] * 12],
    columns={"response": REFERENCES},
    rows=["row 1", "row 2", "row 3"],
)


def lines(*texts: str) -> list[str]:
    return zero_on_reference(load_rewards(parse_rewards(texts), {"max_length": 10}), INPUT)


def test_functions_that_give_most_references_nothing_are_named():
    assert lines("accuracy", "format") == [
        "The reward format is 0 or less for 67% of 3 reference responses of the data, row 1 for example: 'Paris.'."
    ]


def test_a_penalty_is_best_at_zero():
    assert lines("soft_overlong", "repetition") == []
    assert lines("soft_overlong(max_length=3, cache=3)") == [
        "The reward soft_overlong is less than 0 for 100% of 3 reference responses of the data, row 1 for example: "
        "'Paris.'."
    ]


def test_a_negative_weight_is_not_looked_at():
    assert lines("format*-1", "length(target=1)*0") == []


def test_rows_without_a_reward_do_not_count():
    register_reward("some", function=lambda completions: [None, 0.0, None])
    register_reward("none", function=lambda completions: [None] * 3)
    register_reward("half", function=lambda completions: [0.0, 1.0, None])
    assert lines("none", "half") == []
    assert lines("some") == [
        "The reward some is 0 or less for 100% of 1 reference responses of the data, row 2 for example: "
        "'<think>a</think>Rome'."
    ]
