"""Rows as prompts: every format of conversations and of preferences, with all columns for rewards."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from llmtune.data.canonical import prompt_of, to_prompt_record
from llmtune.data.mixing import get_dataset
from llmtune.data.prompts import to_prompt
from llmtune.errors import RowError

ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "query and response": ({"query": "1+1?", "response": "2"}, "1+1?", "2"),
    "question and answer": ({"question": "1+1?", "answer": "#### 2"}, "1+1?", "#### 2"),
    "problem and solution": ({"problem": "1+1?", "solution": "2"}, "1+1?", "2"),
    "trl, text": ({"prompt": "1+1?", "solution": "2"}, "1+1?", "2"),
    "trl, messages": ({"prompt": [{"role": "user", "content": "1+1?"}], "solution": "2"}, "1+1?", "2"),
    "prompt alone": ({"prompt": "1+1?"}, "1+1?", ""),
    "ms-swift": ({"messages": [{"role": "user", "content": "1+1?"}], "solution": "2"}, "1+1?", ""),
    "messages with the response": (
        {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}, "1+1?", "2",
    ),
    "sharegpt": ({"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]}, "1+1?", "2"),
    "alpaca": ({"instruction": "Add.", "input": "1+1?", "output": "2"}, "Add.\n1+1?", "2"),
    "pair": ({"prompt": "1+1?", "chosen": "2", "rejected": "3"}, "1+1?", "2"),
    "good label": ({"prompt": "1+1?", "completion": "2", "label": True}, "1+1?", "2"),
    "bad label": ({"prompt": "1+1?", "completion": "3", "label": False}, "1+1?", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_each_format_is_one_of_prompts(name):
    row, question, reference = ROWS[name]
    found = to_prompt(row)
    assert found.conversation.turns[-1].role == "user"
    assert found.conversation.turns[-1].content == question
    assert (found.reference[-1].content if found.reference else "") == reference
    assert found.columns == row
    assert prompt_of(to_prompt_record(found)) == found


def test_earlier_turns_and_the_system_prompt_stay():
    turns = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    found = to_prompt({"messages": [{"role": role, "content": text} for role, text in turns]})
    assert [one.content for one in found.conversation.messages] == ["Be brief.", "a", "b", "c"]
    assert [one.content for one in found.reference] == ["d"]
    assert not any(one.loss for one in (*found.conversation.messages, *found.reference))


def test_columns_are_those_of_the_row_as_json_holds_them():
    row = {"prompt": "a", "solution": 3, "tests": [{"in": 1}], "day": datetime.date(2026, 11, 30), "blob": b"\x00"}
    found = to_prompt(row)
    assert found.columns == {"prompt": "a", "solution": 3, "tests": [{"in": 1}], "day": "2026-11-30"}
    json.dumps(found.columns)


def test_a_row_without_a_question_is_bad():
    with pytest.raises(RowError, match="no question to respond to"):
        to_prompt({"messages": [{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}]})
    with pytest.raises(RowError):
        to_prompt({"nothing": 1})


def test_columns_survive_the_cache(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"question": f"{n}+1?", "answer": str(n + 1), "level": n, "tags": ["x", str(n)]} for n in range(6)]
    file.write_text("\n".join(map(json.dumps, rows)))
    for _ in range(2):
        train, validation = get_dataset([str(file)], kind="prompts", dataset_test_ratio=0.2)
        assert validation is not None
        found = [prompt_of(record).columns for part in (train, validation) for record in part]
        assert sorted(found, key=lambda one: one["level"]) == rows
