"""Rows of preference data: every public format, and what is refused."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from llmtune.data.canonical import comparison_of, to_comparison_record
from llmtune.data.comparisons import to_comparison
from llmtune.data.mixing import get_dataset
from llmtune.errors import DataError, RowError
from llmtune.types import Comparison, RowKind

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


# From files to comparisons on disk


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_from_a_file_of_one_row_and_said(name, tmp_path, capsys):
    """A file with one object may be a wrapper around a list of rows: a row of preferences is none."""
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(FORMATS[name]), encoding="utf-8")
    train, _ = get_dataset([str(file)], kind="pairs", dataset_test_ratio=0)
    assert comparison_of(train[0]) == to_comparison(FORMATS[name])
    said = capsys.readouterr().err
    assert "1 rows, format ranked responses" in said if name == "nemo-rl" else "1 rows, format pair (" in said
    assert "columns not used" not in said or "history" in said or "tools" in said


def test_pairs_are_two_labelled_responses_for_kto(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [FORMATS["trl, implicit"], {"messages": [Q, GOOD], "label": True}]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    train, _ = get_dataset([str(file)], kind="labels", dataset_test_ratio=0)
    answers = [comparison_of(row).answers for row in train]
    assert [(one[0].messages[0].content, one[0].label) for one in answers] == [("2", True), ("3", False), ("2", True)]
    assert all(len(one) == 1 for one in answers)


def test_rows_that_compare_nothing_are_bad_with_their_place_and_reason(tmp_path, capsys):
    tie = {"context": [Q], "completions": [{"rank": 1, "completion": [one]} for one in (GOOD, BAD)]}
    rows = [
        FORMATS["trl, implicit"],
        {"prompt": "q", "completion": "a", "label": True},
        tie,
        {"prompt": "q", "chosen": "a", "rejected": " "},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    train, _ = get_dataset([str(file)], kind="pairs", dataset_test_ratio=0)
    assert len(train) == 1
    assert "3 of 4 rows are bad and skipped; first: line 2: it labels a single response" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"line 2: it labels a single response.*llmtune kto"):
        get_dataset([str(file)], kind="pairs", strict=True)


def test_a_comparison_survives_its_record_with_tools_thoughts_and_images():
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    row = {
        "system": "s",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "prompt": [{"role": "user", "content": "<image>look"}],
        "images": ["a.png"],
        "chosen": [
            call,
            {"role": "tool", "content": "7"},
            {"role": "assistant", "content": "7", "reasoning_content": "t"},
        ],
        "rejected": "no",
        "margin": 2,
    }
    made = to_comparison(row)
    assert comparison_of(to_comparison_record(made)) == made
    assert [len(answer.messages) for answer in made.answers] == [3, 1]


def test_names_are_filled_into_prompts_and_responses(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "Who?", "chosen": "I am {{NAME}}.", "rejected": "No {{NAME}}."}))
    train, _ = get_dataset([str(file)], kind="pairs", model_name="Ann", dataset_test_ratio=0)
    assert [one.messages[0].content for one in comparison_of(train[0]).answers] == ["I am Ann.", "No Ann."]


def test_rows_of_each_kind_have_a_cache_of_their_own(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(FORMATS["trl, implicit"]))
    found = {kind: get_dataset([str(file)], kind=kind, dataset_test_ratio=0)[0] for kind in get_args(RowKind)}
    assert len({one._fingerprint for one in found.values()}) == 5
    assert [len(found[kind]) for kind in get_args(RowKind)] == [1, 1, 2, 1, 1]


@pytest.mark.parametrize(
    ("name", "kind", "rows"), [("subset_dpo_en_demo", "pairs", 184), ("kto_en_demo", "labels", 300)]
)
def test_real_rows_of_preferences_load(name, kind, rows, assets):
    train, validation = get_dataset([str(assets / "data" / f"{name}.json")], kind=kind)
    assert len(train) + len(validation) == rows
