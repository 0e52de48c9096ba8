"""Rows of preference data: every public format, and what is refused."""

from __future__ import annotations

import json

import pytest

from llmtune.data.comparisons import to_comparison
from llmtune.errors import RowError
from llmtune.types import Comparison

Q = {"role": "user", "content": "What is 1 plus 1?"}
GOOD, BAD = {"role": "assistant", "content": "2"}, {"role": "assistant", "content": "3"}
FORMATS = {
    "trl, explicit, texts": {"prompt": Q["content"], "chosen": "2", "rejected": "3"},
    "trl, explicit, messages": {"prompt": [Q], "chosen": [GOOD], "rejected": [BAD]},
    "trl, implicit": {"chosen": [Q, GOOD], "rejected": [Q, BAD]},
    "hh-rlhf": {
        "chosen": "\n\nHuman: What is 1 plus 1?\n\nAssistant: 2",
        "rejected": "\n\nHuman: What is 1 plus 1?\n\nAssistant: 3",
    },
    "llama-factory, alpaca": {"instruction": "What is", "input": "1 plus 1?", "chosen": "2", "rejected": "3"},
    "llama-factory, sharegpt": {
        "conversations": [{"from": "human", "value": Q["content"]}],
        "chosen": {"from": "gpt", "value": "2"},
        "rejected": {"from": "gpt", "value": "3"},
    },
    "ms-swift, text": {"messages": [Q, GOOD], "rejected_response": "3"},
    "ms-swift, messages": {"messages": [Q, GOOD], "rejected_response": [BAD]},
    "ms-swift, whole conversation": {"messages": [Q, GOOD], "rejected_messages": [Q, BAD]},
    "medicalgpt, 2024": {
        "system": "", "history": [], "question": Q["content"], "response_chosen": "2", "response_rejected": "3",
    },
    "medicalgpt, 2026": {
        "conversations": [{"from": "human", "value": Q["content"]}], "chosen": "2", "rejected": "3", "tools": "[]",
    },
    "nemo-rl": {
        "context": [Q],
        "completions": [{"rank": 1, "completion": [BAD]}, {"rank": 0, "completion": [GOOD]}],
    },
}  # fmt: skip


def shown(comparison: Comparison) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in comparison.prompt.messages]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_pairs_gives_one_prompt_and_two_answers(name):
    made = to_comparison(FORMATS[name])
    question = "What is\n1 plus 1?" if "alpaca" in name else Q["content"]
    assert shown(made) == [("user", question)]
    assert [(answer.messages[0].content, answer.rank) for answer in made.answers] == [("2", 0), ("3", 1)]
    assert all(message.loss for answer in made.answers for message in answer.messages)
    assert not any(message.loss for message in made.prompt.messages)
    assert made.conversation(1).messages == (*made.prompt.messages, *made.answers[1].messages)


@pytest.mark.parametrize(
    ("label", "expected"), [(True, True), (False, False), ("True", True), ("false", False), (1, True), (0, False)]
)
def test_a_label_judges_one_response(label, expected):
    for row in (
        {"messages": [Q, GOOD], "label": label},
        {"prompt": Q["content"], "completion": "2", "label": label},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "2"}], "kto_tag": label},
    ):
        made = to_comparison(row)
        assert [(answer.label, answer.messages[0].content) for answer in made.answers] == [(expected, "2")]


def test_lists_are_ordered_by_rank_and_equal_ranks_are_ties():
    row = {
        "context": [{"role": "system", "content": "Count."}, Q],
        "completions": [{"rank": 7, "completion": [{"role": "assistant", "content": text}]} for text in "ab"]
        + [{"rank": 2, "completion": [GOOD]}],
    }
    made = to_comparison(row)
    assert [(answer.messages[0].content, answer.rank) for answer in made.answers] == [("2", 0), ("a", 1), ("b", 1)]
    assert made.prompt.system == "Count."


def test_margins_turns_and_tools_belong_to_the_row():
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
    result = {"role": "tool", "content": "2"}
    turns = [Q, GOOD, {"role": "user", "content": "And 2 plus 2?"}]
    row = {
        "messages": turns, "tools": [tool], "margin": 0.5,
        "chosen": [call, result, {"role": "assistant", "content": "4"}], "rejected": [call, result, BAD],
    }  # fmt: skip
    made = to_comparison(row)
    assert made.margin == 0.5
    assert len(made.prompt.tools) == 1
    assert [message.role for message in made.prompt.messages] == ["user", "assistant", "user", "assistant", "tool"]
    assert [answer.messages[0].content for answer in made.answers] == ["4", "3"]
    other = to_comparison({**row, "rejected": [BAD]})
    assert [[message.role for message in answer.messages] for answer in other.answers] == [
        ["assistant", "tool", "assistant"],
        ["assistant"],
    ]
    assert [message.loss for message in other.answers[0].messages] == [True, False, True]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "chosen": "2", "rejected": "2"}, "responses are the same"),
        ({"prompt": "q", "chosen": "2", "rejected": " "}, "a response is empty"),
        ({"prompt": "q", "chosen": "", "rejected": "3"}, "a response is empty"),
        ({"prompt": "q", "chosen": [{"role": "assistant", "content": " "}], "rejected": "3"}, "a response is empty"),
        ({"prompt": "q", "chosen": "2"}, "no rejected response"),
        ({"prompt": "q", "rejected": "2"}, "no chosen one"),
        ({"messages": [Q], "rejected_response": "3"}, "the chosen one is missing"),
        ({"chosen": [Q, GOOD], "rejected": [{**Q, "content": "Other?"}, BAD]}, "prompts of responses 1 and 2 differ"),
        ({"chosen": [Q, GOOD], "rejected": [Q, BAD, Q, GOOD]}, "prompts of responses 1 and 2 differ, at message 2"),
        ({"messages": [Q, GOOD], "label": "good"}, "neither true nor false"),
        ({"messages": [Q, GOOD], "label": 2}, "neither true nor false"),
        ({"prompt": "q", "chosen": "2", "rejected": "3", "margin": "big"}, "'margin' holds"),
        ({"context": [Q], "completions": [{"completion": [GOOD]}]}, "no rank"),
        ({"context": [Q], "completions": "none"}, "no list"),
        ({"query": "q", "response": "r"}, "no row of preferences: its keys are 'query', 'response'"),
    ],
)
def test_a_row_that_compares_nothing_is_refused(row, reason):
    with pytest.raises(RowError, match=reason):
        to_comparison(row)


def test_shared_rows_of_the_public_tools_load(assets):
    pairs = json.loads((assets / "data/subset_dpo_en_demo.json").read_text(encoding="utf-8"))
    labels = json.loads((assets / "data/kto_en_demo.json").read_text(encoding="utf-8"))
    read = [to_comparison(row) for row in pairs]
    assert [len(one.answers) for one in read] == [2] * len(pairs)
    for row, made in zip(pairs, read, strict=True):
        assert made.answers[0].messages[-1].content == row["chosen"]["value"]
        assert made.answers[1].messages[-1].content == row["rejected"]["value"]
        assert len(made.prompt.messages) == len(row["conversations"])
    judged = [to_comparison(row) for row in labels]
    assert [one.answers[0].label for one in judged] == [row["label"] for row in labels]
    assert len(pairs) > 100
    assert len(labels) > 100
